//! A process without a file handle left: it refuses for as long as that lasts, and no longer.

use std::net::SocketAddr;

use gatehouse_testkit::eventually;
use serde_json::Value;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::process::Command;

use crate::support::{Gatehouse, PATIENCE, folder};

/// Where the gRPC services of the process that wrote `log` listen.
pub(crate) fn services(log: &str) -> Vec<SocketAddr> {
    let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let serving = lines.filter(|line| line["message"] == "serving gRPC");
    serving.map(|line| line["address"].as_str().unwrap().parse().unwrap()).collect()
}

#[tokio::test]
async fn every_service_takes_connections_again_when_there_are_handles_again() {
    let place = folder();
    let gatehouse = Gatehouse::start(place.path()).await;
    let log = || std::fs::read_to_string(place.path().join("gatehouse.log")).unwrap();
    let services = services(&log());
    assert_eq!(services.len(), 4);
    let id = gatehouse.id();
    let open = std::fs::read_dir(format!("/proc/{id}/fd")).unwrap().count();
    let limit = async |handles: usize| {
        let set = format!("--nofile={handles}:");
        assert!(
            Command::new("prlimit").args(["--pid", &id.to_string(), &set]).status().await.unwrap().success()
        );
    };
    limit(open + 8).await;
    let mut connections = Vec::new();
    for address in &services {
        for _ in 0..16 {
            // The kernel takes them; the process can't.
            connections.push(TcpStream::connect(address).await.unwrap());
        }
    }
    eventually(PATIENCE, || async { log().matches("could not be accepted").count() >= services.len() }).await;
    drop(connections);
    limit(4_096).await;
    for address in services {
        let mut stream = TcpStream::connect(address).await.unwrap();
        // An HTTP/2 server speaks first (RFC 9113, section 3.4).
        let mut settings = [0; 9];
        tokio::time::timeout(PATIENCE, stream.read_exact(&mut settings)).await.unwrap().unwrap();
        assert_eq!(settings[3], 4, "SETTINGS of {address}");
    }
    gatehouse.account("ada").await;
    assert!(gatehouse.stop().await.success());
}
