//! What the contracts look like, for those who ask a server at run time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use prost_reflect::{DescriptorPool, FileDescriptor};

use crate::FILE_DESCRIPTOR_SET;

pub(crate) static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(FILE_DESCRIPTOR_SET)
        .expect("the build script wrote these descriptors and tests read them")
});

/// An encoded `FileDescriptorSet` of the files that declare `services` (`gatehouse.job.v1.JobService`) and of what these
/// import, with every option and comment. A name that no contract declares adds nothing.
#[must_use]
pub fn descriptors_of<'a>(services: impl IntoIterator<Item = &'a str>) -> Vec<u8> {
    let services: BTreeSet<_> = services.into_iter().collect();
    let mut files = BTreeMap::new();
    for service in POOL.services().filter(|service| services.contains(service.full_name())) {
        add(&service.parent_file(), &mut files);
    }
    let mut set = Vec::new();
    for file in files.values() {
        prost::encoding::bytes::encode(1, file, &mut set);
    }
    set
}

fn add(file: &FileDescriptor, files: &mut BTreeMap<String, Vec<u8>>) {
    if files.insert(file.name().to_owned(), file.encode_to_vec()).is_none() {
        for dependency in file.dependencies() {
            add(&dependency, files);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_described_with_its_options_and_without_the_others() {
        let set = descriptors_of(["gatehouse.job.v1.JobService", "made.up.Service"]);
        let pool = DescriptorPool::decode(set.as_slice()).expect("nothing that it imports is missing");
        let services: Vec<_> = pool.services().map(|service| service.full_name().to_owned()).collect();
        assert_eq!(services, ["gatehouse.job.v1.JobService", "gatehouse.job.v1.WorkerService"]);
        let access = pool.get_extension_by_name("gatehouse.options.v1.access").expect("it is imported");
        let methods = pool.services().flat_map(|service| service.methods().collect::<Vec<_>>());
        assert!(methods.into_iter().all(|method| method.options().has_extension(&access)));
        assert!(descriptors_of([]).is_empty());
    }
}
