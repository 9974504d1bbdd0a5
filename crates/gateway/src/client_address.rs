//! Which address a request comes from, and over what scheme.
//!
//! Invariant: a header is believed only if it is the one that the trusted proxies write (of any other, all is the
//! client's), and only as far as an unbroken chain of them vouches for it, read from our end: anyone can write the
//! other end.

use std::net::IpAddr;

use actix_web::http::header::HeaderMap;
use ipnet::IpNet;

use crate::config::ProxyHeader;

/// Where a request came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ClientAddress {
    /// The client, or the first untrusted hop on its behalf.
    pub(crate) ip: IpAddr,
    /// Whether the client's own connection was HTTPS, directly or as a trusted proxy says.
    pub(crate) https: bool,
}

/// The client of a request that `peer` sent over `tls` or not; `trusted` proxies write `header`.
#[must_use]
pub(crate) fn resolve(
    peer: IpAddr,
    tls: bool,
    headers: &HeaderMap,
    trusted: &[IpNet],
    header: ProxyHeader,
) -> ClientAddress {
    let is_trusted = |ip: IpAddr| trusted.iter().any(|net| net.contains(&ip));
    let peer = peer.to_canonical();
    if !is_trusted(peer) {
        return ClientAddress { ip: peer, https: tls };
    }
    let (hops, proto) = match header {
        ProxyHeader::XForwardedFor => x_forwarded(headers),
        ProxyHeader::Forwarded => forwarded(headers),
    };
    let mut ip = peer;
    for hop in hops.iter().rev() {
        // A hop that is no address ("unknown", "_hidden") ends what can be known.
        let Some(address) = parse_node(hop) else { break };
        ip = address;
        if !is_trusted(address) {
            break;
        }
    }
    ClientAddress { ip, https: proto.map_or(tls, |proto| proto.eq_ignore_ascii_case("https")) }
}

/// The parts of all fields of this name. One with bytes that are no text is none that means anything, but it hides no other.
fn values(headers: &HeaderMap, name: &str) -> Vec<String> {
    let parts = headers.get_all(name).flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    parts.map(|part| String::from_utf8_lossy(part).trim().to_owned()).collect()
}

fn x_forwarded(headers: &HeaderMap) -> (Vec<String>, Option<String>) {
    // The last scheme is the one that the proxy next to us wrote.
    (values(headers, "x-forwarded-for"), values(headers, "x-forwarded-proto").pop())
}

/// RFC 7239, section 4.
fn forwarded(headers: &HeaderMap) -> (Vec<String>, Option<String>) {
    let (mut hops, mut proto) = (Vec::new(), None);
    for element in values(headers, "forwarded") {
        let mut hop = String::new();
        proto = None;
        for pair in element.split(';') {
            let Some((name, value)) = pair.split_once('=') else { continue };
            let value = value.trim().trim_matches('"').to_owned();
            match name.trim().to_ascii_lowercase().as_str() {
                "for" => hop = value,
                "proto" => proto = Some(value),
                _ => {}
            }
        }
        hops.push(hop);
    }
    (hops, proto)
}

/// An address with or without port, IPv6 with or without brackets.
fn parse_node(text: &str) -> Option<IpAddr> {
    let bare = text
        .strip_prefix('[')
        .and_then(|rest| rest.split_once(']').map(|(address, _port)| address))
        .or_else(|| {
            text.split_once(':').filter(|(_, rest)| !rest.contains(':')).map(|(address, _port)| address)
        })
        .unwrap_or(text);
    bare.parse::<IpAddr>().ok().map(|ip| ip.to_canonical())
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::{HeaderName, HeaderValue};

    use super::*;

    fn resolved(peer: &str, headers: &[(&str, &str)]) -> (String, bool) {
        resolved_by(ProxyHeader::XForwardedFor, peer, headers)
    }

    fn resolved_by(header: ProxyHeader, peer: &str, headers: &[(&str, &str)]) -> (String, bool) {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(
                HeaderName::from_bytes(name.as_bytes()).expect("a name"),
                HeaderValue::from_bytes(value.as_bytes()).expect("a value"),
            );
        }
        let trusted: Vec<IpNet> =
            ["10.0.0.0/8", "fd00::/8"].iter().map(|net| net.parse().expect("a network")).collect();
        let found = resolve(peer.parse().expect("an address"), false, &map, &trusted, header);
        (found.ip.to_string(), found.https)
    }

    #[test]
    fn a_header_from_an_untrusted_peer_counts_for_nothing() {
        let headers =
            [("x-forwarded-for", "1.1.1.1"), ("x-forwarded-proto", "https"), ("forwarded", "for=1.1.1.1")];
        assert_eq!(resolved("9.9.9.9", &headers), ("9.9.9.9".into(), false));
    }

    #[test]
    fn the_first_untrusted_hop_from_our_end_is_the_client() {
        let spoofed = [("x-forwarded-for", "1.1.1.1, 8.8.8.8, 10.1.1.1"), ("x-forwarded-proto", "https")];
        assert_eq!(resolved("10.0.0.1", &spoofed), ("8.8.8.8".into(), true));
        let two_headers = [("x-forwarded-for", "1.1.1.1"), ("x-forwarded-for", "8.8.4.4:5123")];
        assert_eq!(resolved("10.0.0.1", &two_headers), ("8.8.4.4".into(), false));
        assert_eq!(resolved("10.0.0.1", &[("x-forwarded-for", "junk")]), ("10.0.0.1".into(), false));
        assert_eq!(
            resolved("10.0.0.1", &[("x-forwarded-for", "\u{e9}, 8.8.8.8")]),
            ("8.8.8.8".into(), false)
        );
        let hidden = [("x-forwarded-for", "8.8.8.8, \u{e9}"), ("x-forwarded-proto", "\u{e9}, https")];
        assert_eq!(resolved("10.0.0.1", &hidden), ("10.0.0.1".into(), true));
        assert_eq!(resolved("10.0.0.1", &[]), ("10.0.0.1".into(), false));
        assert_eq!(resolved("::ffff:10.0.0.1", &[("x-forwarded-for", "7.7.7.7")]), ("7.7.7.7".into(), false));
    }

    #[test]
    fn one_header_counts_and_the_other_does_not() {
        let headers = [
            ("forwarded", r#"for=1.1.1.1, for="[2001:db8::17]:4711";proto=https"#),
            ("x-forwarded-for", "8.8.8.8"),
        ];
        assert_eq!(resolved_by(ProxyHeader::Forwarded, "fd00::1", &headers), ("2001:db8::17".into(), true));
        assert_eq!(resolved("fd00::1", &headers), ("8.8.8.8".into(), false));
        assert_eq!(resolved("fd00::1", &headers[..1]), ("fd00::1".into(), false));
    }
}
