//! gRPC reflection (`grpc.reflection.v1`, and v1alpha for the tools that know no other): what a server serves.

use std::collections::BTreeSet;

use gatehouse_core::{Error, Result};
use gatehouse_proto::descriptors::descriptors_of;
use tonic::service::Routes;
use tonic_reflection::pb::{v1, v1alpha};
use tonic_reflection::server::Builder;

/// The paths of its methods.
pub(crate) const METHODS: [&str; 2] = [
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];

/// Adds reflection to `routes`, which tells of `services` (full names of ours), of health and of itself: of nothing that
/// another server serves.
///
/// # Errors
/// If a descriptor can't be read, which a test would have found.
pub(crate) fn add(routes: Routes, services: &BTreeSet<String>) -> Result<Routes> {
    let described = descriptors_of(services.iter().map(String::as_str));
    let builder = || {
        Builder::configure()
            .include_reflection_service(false)
            .register_encoded_file_descriptor_set(&described)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(v1::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(v1alpha::FILE_DESCRIPTOR_SET)
    };
    let current = builder().build_v1().map_err(Error::internal)?;
    let older = builder().build_v1alpha().map_err(Error::internal)?;
    Ok(routes.add_service(current).add_service(older))
}
