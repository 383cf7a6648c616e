//! Who a click came from: the client's address, and the network that its rate is counted for.
//!
//! Behind `trusted_proxies` the address is the entry of `X-Forwarded-For` that the outermost of
//! them added. Entries before it are the client's own words, of any bytes at all; they are counted
//! from the right and never read. An entry may have a port (`ip:port`, `[v6]:port`). Where there is
//! no such entry, or it is no address, the peer's counts, so that nobody gets around a limit by
//! being nobody.

use axum::{
    extract::ConnectInfo,
    http::{HeaderMap, request::Parts},
};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// The client's address behind so many proxies.
pub(crate) fn client_ip(request: &Parts, proxies: usize) -> Option<IpAddr> {
    let peer = request.extensions.get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip());
    forwarded(&request.headers, proxies).or(peer).map(|ip| ip.to_canonical())
}

/// What is limited as one: an IPv4 address, or an IPv6 /64, all of which one household has.
pub(crate) fn network(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => ip,
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into(),
    }
}

fn forwarded(headers: &HeaderMap, proxies: usize) -> Option<IpAddr> {
    let headers: Vec<&[u8]> =
        headers.get_all("x-forwarded-for").iter().map(|header| header.as_bytes()).collect();
    let mut entries = headers.iter().rev().flat_map(|header| header.rsplit(|byte| *byte == b','));
    address(entries.nth(proxies.checked_sub(1)?)?)
}

fn address(entry: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(entry.trim_ascii()).ok()?;
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    bare.parse().ok().or_else(|| text.parse().ok().map(|address: SocketAddr| address.ip()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use axum::http::{HeaderValue, Request};

    fn client(headers: &[&[u8]], proxies: usize) -> String {
        let (mut request, ()) = Request::new(()).into_parts();
        let peer: SocketAddr = "10.0.0.1:4711".parse().unwrap();
        request.extensions.insert(ConnectInfo(peer));
        for header in headers {
            let value = HeaderValue::from_bytes(header).unwrap();
            request.headers.append("x-forwarded-for", value);
        }
        client_ip(&request, proxies).unwrap().to_string()
    }

    #[test]
    fn counts_from_the_right_whatever_stands_on_the_left() {
        let cases: [(&[&[u8]], usize, &str); 14] = [
            (&[b"203.0.113.9"], 0, "10.0.0.1"),
            (&[b"203.0.113.9"], 1, "203.0.113.9"),
            (&[b"198.51.100.7, 203.0.113.9"], 1, "203.0.113.9"),
            (&[b"198.51.100.7, 203.0.113.9"], 2, "198.51.100.7"),
            (&[b"198.51.100.7", b"203.0.113.9"], 1, "203.0.113.9"),
            (&[b"1.1.1.1, 198.51.100.7", b"203.0.113.9"], 2, "198.51.100.7"),
            (&[b"\xe9, 203.0.113.9"], 1, "203.0.113.9"),
            (&[b"203.0.113.9:5000"], 1, "203.0.113.9"),
            (&[b"x, [2001:db8::1]:5000 "], 1, "2001:db8::1"),
            (&[b"[2001:db8::1]"], 1, "2001:db8::1"),
            (&[b"::ffff:203.0.113.9"], 1, "203.0.113.9"),
            (&[b"203.0.113.9, unknown"], 1, "10.0.0.1"),
            (&[b"203.0.113.9"], 2, "10.0.0.1"),
            (&[], 1, "10.0.0.1"),
        ];
        for (headers, proxies, expected) in cases {
            assert_eq!(client(headers, proxies), expected, "{headers:?} behind {proxies}");
        }
    }

    #[test]
    fn a_household_is_one_network() {
        let of = |ip: &str| network(ip.parse().unwrap()).to_string();
        assert_eq!(of("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!(of("203.0.113.9"), "203.0.113.9");
    }
}
