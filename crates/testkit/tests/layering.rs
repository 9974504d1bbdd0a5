//! The layers of the workspace hold: arrows run downwards only, and the gateway has no database.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::collections::{BTreeSet, HashMap};

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, PackageId};

/// What each crate may depend on, of ours, outside its tests.
const MAY_USE: &[(&str, &[&str])] = &[
    ("core", &[]),
    ("proto", &["core"]),
    ("client", &["core", "proto"]),
    ("db", &["core"]),
    ("ratelimit", &["core"]),
    ("secrets", &["core"]),
    ("objective", &["core"]),
    ("service", &["core", "proto", "client"]),
    ("outbox", &["core", "proto", "client", "db", "service"]),
    ("auth", SERVICE),
    ("job", SERVICE),
    ("audit", SERVICE),
    ("token-broker", &["core", "proto", "client", "db", "service", "outbox", "secrets"]),
    ("gateway", &["core", "proto", "client", "service", "ratelimit", "objective"]),
    ("optimizer", &["core", "client", "objective"]),
    ("testkit", &["core", "db"]),
    // Shows the product from outside, so it may start what tests start.
    ("demo", &["core", "testkit"]),
    // Loads the product from outside, as its clients do, and measures what its libraries cost in a caller.
    ("bench", &["core", "proto", "client", "ratelimit", "service", "testkit"]),
    (
        "gatehouse",
        &[
            "core",
            "proto",
            "client",
            "db",
            "ratelimit",
            "secrets",
            "service",
            "outbox",
            "auth",
            "job",
            "audit",
            "token-broker",
            "gateway",
            "optimizer",
        ],
    ),
];
const SERVICE: &[&str] = &["core", "proto", "client", "db", "service", "outbox"];

fn metadata() -> Metadata {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.toml");
    MetadataCommand::new().manifest_path(manifest).other_options(vec!["--offline".into()]).exec().unwrap()
}

/// `gatehouse-token-broker` is `token-broker`, `gatehouse` is itself, others are not ours.
fn our_name(package: &str) -> Option<&str> {
    if package == "gatehouse" { Some(package) } else { package.strip_prefix("gatehouse-") }
}

#[test]
fn arrows_run_downwards_only() {
    let metadata = metadata();
    let rules: HashMap<_, _> = MAY_USE.iter().copied().collect();
    let mut broken = Vec::new();
    for package in metadata.workspace_packages() {
        let Some(name) = our_name(&package.name) else { continue };
        let Some(allowed) = rules.get(name) else {
            broken.push(format!("{name} has no layer: add it to MAY_USE"));
            continue;
        };
        for dependency in &package.dependencies {
            if dependency.kind != DependencyKind::Development
                && let Some(used) = our_name(&dependency.name)
                && !allowed.contains(&used)
            {
                broken.push(format!("{name} may not depend on {used}"));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// Every package that `root` needs to run, in all features that the workspace builds it with.
fn normal_tree(metadata: &Metadata, root: &str) -> BTreeSet<String> {
    let resolve = metadata.resolve.as_ref().unwrap();
    let nodes: HashMap<_, _> = resolve.nodes.iter().map(|node| (&node.id, node)).collect();
    let names: HashMap<_, _> =
        metadata.packages.iter().map(|package| (&package.id, package.name.as_str())).collect();
    let start = metadata.packages.iter().find(|package| package.name.as_str() == root).unwrap();
    let mut open: Vec<&PackageId> = vec![&start.id];
    let mut seen = BTreeSet::new();
    while let Some(id) = open.pop() {
        if seen.insert(names[id].to_owned()) {
            let needed = nodes[id].deps.iter();
            open.extend(
                needed
                    .filter(|dep| dep.dep_kinds.iter().any(|kind| kind.kind == DependencyKind::Normal))
                    .map(|dep| &dep.pkg),
            );
        }
    }
    seen
}

#[test]
fn the_gateway_has_no_database() {
    let metadata = metadata();
    let gateway = normal_tree(&metadata, "gatehouse-gateway");
    let drivers: Vec<_> =
        gateway.iter().filter(|name| name.contains("sqlx") || *name == "gatehouse-db").collect();
    assert!(drivers.is_empty(), "the gateway pulls in {drivers:?}");
    // The search itself finds what is there.
    assert!(normal_tree(&metadata, "gatehouse-db").contains("sqlx-postgres"));
}

#[test]
fn only_db_names_the_drivers() {
    let metadata = metadata();
    let named: Vec<_> = metadata
        .workspace_packages()
        .into_iter()
        .filter(|package| {
            package
                .dependencies
                .iter()
                .any(|dep| dep.name == "sqlx" && dep.kind != DependencyKind::Development)
        })
        .map(|package| package.name.to_string())
        // Test servers are made, and raw databases measured, with a driver of their own.
        .filter(|name| name != "gatehouse-testkit" && name != "gatehouse-bench")
        .collect();
    assert_eq!(named, ["gatehouse-db"]);
}
