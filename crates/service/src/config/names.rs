//! Names that were not meant: what is beside a name that does not exist, and which variables are no setting at all.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::Field;

/// What the names of our environment variables begin with.
pub(super) const PREFIX: &str = "GATEHOUSE_";

/// Most that a name may differ from another to be taken for it.
const CLOSE: usize = 4;

/// What a word costs that one name has in front and the other has not: a section that was left out, say.
const WORD: usize = 2;

/// Whether Kubernetes made the variable `name` out of all `variables`: it tells every container of the Services of its
/// namespace by such names, and a Service may be called `gatehouse-auth`. Each Service has a `<NAME>_SERVICE_HOST` with
/// an address; by that its other names are known:
/// <https://kubernetes.io/docs/tutorials/services/connect-applications-service/#environment-variables>.
pub(super) fn is_service_link(name: &str, variables: &BTreeMap<String, String>) -> bool {
    let hosts = variables.iter().filter(|(_, value)| value.parse::<IpAddr>().is_ok());
    hosts.filter_map(|(host, _)| host.strip_suffix("_SERVICE_HOST")).any(|service| {
        let rest = name.strip_prefix(service);
        rest.is_some_and(|rest| is_link_ending(rest, variables.get(name).map_or("", String::as_str)))
    })
}

/// Whether a name of a service link ends with `rest` and has `value`.
fn is_link_ending(rest: &str, value: &str) -> bool {
    let is_address = ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme));
    let is_number = |text: &str| text.parse::<u16>().is_ok();
    match rest {
        "_SERVICE_HOST" => value.parse::<IpAddr>().is_ok(),
        "_SERVICE_PORT" => is_number(value),
        "_PORT" => is_address,
        _ if rest.starts_with("_SERVICE_PORT_") => is_number(value),
        _ => rest.strip_prefix("_PORT_").is_some_and(|rest| {
            let mut parts = rest.split('_');
            let (port, protocol, last) = (parts.next(), parts.next(), parts.next());
            port.is_some_and(is_number)
                && matches!(protocol, Some("TCP" | "UDP" | "SCTP"))
                && matches!(last, None | Some("PROTO" | "PORT" | "ADDR"))
                && parts.next().is_none()
        }),
    }
}

/// What to say after "there is no variable `name`".
pub(super) fn suggest_variable<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> String {
    let mut nearest = known.map(|candidate| (likeness(name, candidate), candidate)).collect::<Vec<_>>();
    nearest.sort_unstable();
    match nearest.first() {
        Some((0..=CLOSE, close)) => format!("; did you mean {close}?"),
        _ => "; `gatehouse config docs` lists them all".to_owned(),
    }
}

/// How little the names of two variables have in common, however their words are parted, and wherever one begins. The last
/// word of the right one may be left out: `_FILE`, say.
fn likeness(left: &str, right: &str) -> usize {
    let words = |name: &str| -> Vec<String> {
        let name = name.strip_prefix(PREFIX).unwrap_or(name);
        name.split('_').filter(|word| !word.is_empty()).map(str::to_owned).collect()
    };
    let (left, right) = (words(left), words(right));
    let shorter = right.split_last().map_or(&right[..], |(_, rest)| rest);
    let mut least = WORD + distance(&left.join("_"), &shorter.join("_"));
    for (skipped, _) in left.iter().enumerate() {
        for (added, _) in right.iter().enumerate() {
            let differ = distance(&left[skipped..].join("_"), &right[added..].join("_"));
            least = least.min(WORD * (skipped + added) + differ);
        }
    }
    least
}

/// The key that was meant: one that is written alike, or the same name in another section.
pub(super) fn suggest_key(path: &str, fields: &[Field]) -> String {
    let last = |path: &str| path.rsplit('.').next().unwrap_or_default().to_owned();
    let named =
        |field: &&Field| last(&field.path) == last(path) || field.path.contains(&format!("{}.", last(path)));
    if let Some((0..=3, close)) = closest(path, fields.iter().map(|field| &field.path)) {
        return format!("; did you mean {close}?");
    }
    let sections: Vec<String> = fields
        .iter()
        .filter_map(|field| field.path.rsplit_once('.'))
        .map(|(section, _)| section.to_owned())
        .collect();
    match (closest(path, sections.iter()), fields.iter().find(named)) {
        (Some((0..=3, close)), _) => format!("; did you mean the section {close}?"),
        (_, Some(field)) => format!("; did you mean {}?", field.path),
        _ => "; `gatehouse config docs` lists them all".to_owned(),
    }
}

fn closest<'a>(name: &str, known: impl Iterator<Item = &'a String>) -> Option<(usize, &'a String)> {
    known.map(|candidate| (distance(name, candidate), candidate)).min()
}

/// Levenshtein distance, for suggestions only.
fn distance(left: &str, right: &str) -> usize {
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (above, byte) in left.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], above + 1);
        for (column, other) in right.bytes().enumerate() {
            let substituted = diagonal + usize::from(byte != other);
            diagonal = row[column + 1];
            row[column + 1] = substituted.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINKS: &[(&str, &str)] = &[
        ("GATEHOUSE_AUTH_SERVICE_HOST", "10.0.0.11"),
        ("GATEHOUSE_AUTH_SERVICE_PORT", "9000"),
        ("GATEHOUSE_AUTH_SERVICE_PORT_GRPC", "9000"),
        ("GATEHOUSE_AUTH_PORT", "tcp://10.0.0.11:9000"),
        ("GATEHOUSE_AUTH_PORT_9000_TCP", "tcp://10.0.0.11:9000"),
        ("GATEHOUSE_AUTH_PORT_9000_TCP_PROTO", "tcp"),
        ("GATEHOUSE_AUTH_PORT_9000_TCP_PORT", "9000"),
        ("GATEHOUSE_AUTH_PORT_9000_TCP_ADDR", "10.0.0.11"),
        ("GATEHOUSE_SERVICE_HOST", "fd00::11"),
        ("GATEHOUSE_PORT", "udp://[fd00::11]:443"),
        ("GATEHOUSE_PORT_443_UDP_ADDR", "fd00::11"),
    ];

    #[test]
    fn service_links_are_told_from_slips() {
        let mut variables: BTreeMap<String, String> =
            LINKS.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let slips = [
            ("GATEHOUSE_AUTH_HOST", "10.0.0.11"),
            ("GATEHOUSE_AUTH_ISSUER", "x"),
            ("GATEHOUSE_AUTH_PORT_9000", "9000"),
            ("GATEHOUSE_AUTH_PORT_GRPC_TCP", "tcp://10.0.0.11:9000"),
            ("GATEHOUSE_AUTH_PORT_9000_TCP_ADDR_X", "10.0.0.11"),
            // No Service of theirs is there.
            ("GATEHOUSE_JOB_SERVICE_PORT", "9000"),
            ("GATEHOUSE_JOB_PORT", "tcp://10.0.0.12:9000"),
            ("GATEHOUSE_AUDIT_SERVICE_HOST", "audit.example.com"),
        ];
        variables.extend(slips.map(|(name, value)| (name.to_owned(), value.to_owned())));
        for (name, _) in LINKS {
            assert!(is_service_link(name, &variables), "{name}");
        }
        for (name, _) in slips {
            assert!(!is_service_link(name, &variables), "{name}");
        }
        variables.insert("GATEHOUSE_AUTH_PORT".to_owned(), "9000".to_owned());
        assert!(!is_service_link("GATEHOUSE_AUTH_PORT", &variables));
    }

    #[test]
    fn the_variable_that_was_meant_is_found() {
        let known =
            ["GATEHOUSE_ISSUER", "GATEHOUSE_GATEWAY__CORS_ALLOWED_ORIGINS", "GATEHOUSE_ENV", "REQUIRE_AUTH"];
        for (slip, meant) in [
            ("GATEHOUSE_ISSUR", known[0]),
            ("GATEHOUSE_AUTH_ISUER", known[0]),
            ("GATEHOUSE_CORS_ALLOWED_ORIGINS", known[1]),
            ("GATEHOUSE_GATEWAY_CORS_ALLOWED_ORIGINS", known[1]),
            ("GATEHOUSE_ENVIRON", known[2]),
            ("GATEHOUSE_REQUIRE_AUTH", known[3]),
        ] {
            assert_eq!(
                suggest_variable(slip, known.into_iter()),
                format!("; did you mean {meant}?"),
                "{slip}"
            );
        }
        assert!(suggest_variable("GATEHOUSE_NONSENSE__AT_ALL", known.into_iter()).contains("lists them all"));
    }
}
