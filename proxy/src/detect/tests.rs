//! Detection, split at every byte: the verdict must be the same however the bytes arrive.
use super::*;

fn verdict_of(bytes: &[u8]) -> Option<Protocol> {
    let peek = Peek {
        buffer: BytesMut::from(bytes),
        ended: false,
    };
    peek.verdict()
}

/// The verdict on the whole, having checked that no shorter prefix says something else.
fn stable(bytes: &[u8]) -> Option<Protocol> {
    let whole = verdict_of(bytes);
    for n in 0..bytes.len() {
        let early = verdict_of(bytes.get(..n).expect("prefix"));
        assert!(early.is_none() || early == whole, "{n} bytes say {early:?}");
    }
    whole
}

fn client_hello(name: &str, alpn: &[&[u8]]) -> Vec<u8> {
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    let name = name.to_owned().try_into().expect("a name");
    let mut tls = rustls::ClientConnection::new(config.into(), name).expect("a client");
    let mut out = Vec::new();
    tls.write_tls(&mut out).expect("written");
    out
}

#[test]
fn http_is_told_by_its_first_line() {
    for (line, want) in [
        ("GET / HTTP/1.1\r\n", Protocol::Http11),
        ("\r\nGET / HTTP/1.1\r\n", Protocol::Http11),
        ("POST http://a/b?c HTTP/1.0\r\n", Protocol::Http10),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Protocol::Http2),
        ("PROPFIND /x HTTP/1.1\n", Protocol::Http11),
        ("GET /\r\n", Protocol::Opaque),
        ("HELO mail.example\r\n", Protocol::Opaque),
        ("*1\r\n$4\r\nPING\r\n", Protocol::Opaque),
        ("\0\0\0\u{8}\u{4}\u{d2}\u{16}/", Protocol::Opaque),
        ("SSH-2.0-x\r\n", Protocol::Opaque),
        ("PRI * HTTP/2.1\r\n", Protocol::Opaque),
    ] {
        assert_eq!(stable(line.as_bytes()), Some(want), "{line:?}");
    }
}

#[test]
fn nothing_yet_is_no_verdict_and_an_endless_line_is_opaque() {
    assert_eq!(verdict_of(b""), None);
    assert_eq!(verdict_of(b"GE"), None);
    let endless = [b"GET /".as_slice(), &[b'a'; MAX_PEEK]].concat();
    assert_eq!(verdict_of(&endless), Some(Protocol::Opaque));
}

#[test]
fn a_client_that_closes_early_is_opaque() {
    let peek = Peek {
        buffer: BytesMut::from("GET"),
        ended: true,
    };
    assert_eq!(peek.verdict(), Some(Protocol::Opaque));
}

#[test]
fn a_client_hello_gives_name_and_alpn() {
    let hello = client_hello("Cart.Shop.example", &[b"outrigger-h2", b"h2"]);
    let Some(Protocol::Tls(found)) = stable(&hello) else {
        panic!("not TLS");
    };
    assert_eq!(found.server_name.as_deref(), Some("cart.shop.example"));
    assert_eq!(found.alpn, [b"outrigger-h2".to_vec(), b"h2".to_vec()]);
}

#[test]
fn a_client_hello_in_many_records_is_joined() {
    let hello = client_hello("a.example", &[]);
    let payload = hello.get(5..).expect("a record");
    let mut cut = Vec::new();
    for part in payload.chunks(100) {
        cut.extend_from_slice(&[22, 3, 1, 0, u8::try_from(part.len()).expect("short")]);
        cut.extend_from_slice(part);
    }
    let Some(Protocol::Tls(found)) = stable(&cut) else {
        panic!("not TLS");
    };
    assert_eq!(found.server_name.as_deref(), Some("a.example"));
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes: Vec<u8>, lead in 0..3_u8) {
        let mut all = match lead {
            0 => vec![22, 3, 1],
            1 => client_hello("a.example", &[b"h2"]),
            _ => Vec::new(),
        };
        let at = bytes.first().map_or(0, |b| usize::from(*b)) % (all.len() + 1);
        all.splice(at.., bytes);
        let _verdict = verdict_of(&all);
    }
}
