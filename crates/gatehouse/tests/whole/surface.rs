//! What the gRPC ports of one process show to `grpcurl` and to health probes.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use gatehouse_testkit::eventually;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1alpha::ServerReflectionRequest;
use tonic_reflection::pb::v1alpha::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1alpha::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1alpha::server_reflection_response::MessageResponse;

use crate::handles::services;
use crate::support::{Gatehouse, PATIENCE, folder};

async fn connect(address: SocketAddr) -> Channel {
    Endpoint::new(format!("http://{address}")).unwrap().connect().await.unwrap()
}

async fn listed(channel: &Channel) -> BTreeSet<String> {
    let asked = MessageRequest::ListServices(String::new());
    let request = ServerReflectionRequest { host: String::new(), message_request: Some(asked) };
    let mut client = ServerReflectionClient::new(channel.clone());
    let answers = client.server_reflection_info(tokio_stream::once(request)).await.unwrap();
    let answer = answers.into_inner().message().await.unwrap().unwrap();
    let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
        panic!("no list")
    };
    list.service.into_iter().map(|service| service.name).collect()
}

async fn health(channel: &Channel, service: &str) -> Result<ServingStatus, Code> {
    let request = HealthCheckRequest { service: service.to_owned() };
    let answer = HealthClient::new(channel.clone()).check(request).await;
    answer.map(|answer| answer.into_inner().status()).map_err(|status| status.code())
}

/// The services of the contracts, by package.
fn declared(package: &str) -> BTreeSet<String> {
    let methods = gatehouse_proto::access::access_table(&[package]).unwrap();
    methods.keys().map(|path| path.split('/').nth(1).unwrap().to_owned()).collect()
}

#[tokio::test]
async fn each_port_of_one_process_shows_its_own_service_and_no_other() {
    let place = folder();
    let gatehouse = Gatehouse::start(place.path()).await;
    let log = std::fs::read_to_string(place.path().join("gatehouse.log")).unwrap();
    let mut seen = vec![];
    for address in services(&log) {
        let channel = connect(address).await;
        let (own, others): (BTreeSet<_>, BTreeSet<_>) =
            listed(&channel).await.into_iter().partition(|name| name.starts_with("gatehouse."));
        let expected = [
            "grpc.health.v1.Health",
            "grpc.reflection.v1.ServerReflection",
            "grpc.reflection.v1alpha.ServerReflection",
        ];
        assert_eq!(others, expected.map(str::to_owned).into());
        for service in own.iter().map(String::as_str).chain(expected).chain([""]) {
            eventually(PATIENCE, || async { health(&channel, service).await == Ok(ServingStatus::Serving) })
                .await;
        }
        for package in gatehouse_proto::access::PACKAGES {
            for service in declared(package).difference(&own) {
                assert_eq!(health(&channel, service).await, Err(Code::NotFound), "{service} at {address}");
            }
        }
        seen.push(own);
    }
    seen.sort();
    let mut expected: Vec<_> =
        gatehouse_proto::access::PACKAGES.iter().map(|package| declared(package)).collect();
    expected.sort();
    assert_eq!(seen, expected);
    assert!(gatehouse.stop().await.success());
}
