//! Authorizes changing requests: only clients on this machine that use a loopback host name, never another site's page.
//!
//! A browser on this machine can reach the loopback address on behalf of any page. Two checks reject such requests:
//! `Host` must be a loopback name (which defeats DNS rebinding), and `Origin`, which browsers add to every changing
//! request, must be a loopback address too.

use std::net::{IpAddr, SocketAddr};

use axum::http::{HeaderMap, StatusCode, header};

use super::answer::Refusal;

/// Rejects a changing request that does not originate from this machine.
pub(super) fn check(peer: SocketAddr, headers: &HeaderMap) -> Result<(), Refusal> {
    let forbidden =
        |message: String| Err(Refusal::new(StatusCode::FORBIDDEN, "forbidden", message));
    if !peer.ip().to_canonical().is_loopback() {
        return forbidden(format!(
            "changes are accepted from this machine only, not from {}; change the handler's spec instead",
            peer.ip()
        ));
    }
    let Some(host) = text(headers, header::HOST) else {
        return forbidden("the request has no `Host` header".to_owned());
    };
    if !is_loopback_host(host) {
        return forbidden(format!(
            "changes require a loopback host name, not `{host}`; use http://127.0.0.1 and the port"
        ));
    }
    match text(headers, header::ORIGIN) {
        Some(origin) if !is_loopback_origin(origin) => {
            forbidden(format!("changes from pages of `{origin}` are not allowed"))
        }
        _ => Ok(()),
    }
}

fn text(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    headers
        .get(name)
        .map(|value| value.to_str().unwrap_or("(not text)"))
}

fn is_loopback_origin(origin: &str) -> bool {
    origin.strip_prefix("http://").is_some_and(is_loopback_host)
}

/// Whether `host[:port]` names this machine.
fn is_loopback_host(host_and_port: &str) -> bool {
    if let Ok(socket) = host_and_port.parse::<SocketAddr>() {
        return socket.ip().is_loopback();
    }
    let host = match host_and_port.rsplit_once(':') {
        Some((host, port)) if !host.ends_with(':') && port.bytes().all(|b| b.is_ascii_digit()) => {
            host
        }
        _ => host_and_port,
    };
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost")
        || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(host: &str, origin: Option<&str>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, host.parse().expect("a header"));
        if let Some(origin) = origin {
            headers.insert(header::ORIGIN, origin.parse().expect("a header"));
        }
        headers
    }

    fn allowed(peer: &str, host: &str, origin: Option<&str>) -> bool {
        check(peer.parse().expect("an address"), &headers(host, origin)).is_ok()
    }

    #[test]
    fn only_loopback_clients_with_a_loopback_host_name_may_change_anything() {
        let here = "127.0.0.1:50000";
        for host in [
            "127.0.0.1:9600",
            "localhost:9600",
            "localhost",
            "[::1]:9600",
            "[::1]",
            "127.0.0.1",
        ] {
            assert!(allowed(here, host, None), "{host}");
        }
        assert!(allowed(
            "[::1]:50000",
            "[::1]:9600",
            Some("http://localhost:9600")
        ));
        for host in [
            "evil.example:9600",
            "evil.example",
            "127.0.0.1.evil.example",
            "10.0.0.1:9600",
            "",
        ] {
            assert!(!allowed(here, host, None), "{host}");
        }
        for origin in [
            "http://evil.example",
            "null",
            "https://evil.example:9600",
            "http://127.0.0.1.evil.example",
        ] {
            assert!(!allowed(here, "127.0.0.1:9600", Some(origin)), "{origin}");
        }
        assert!(!allowed("10.1.2.3:50000", "127.0.0.1:9600", None));
        assert!(check(here.parse().expect("an address"), &HeaderMap::new()).is_err());
    }
}
