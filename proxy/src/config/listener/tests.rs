//! Choice of the filter chain.
use super::*;

fn chain(name: &str, matcher: ChainMatch) -> Arc<FilterChain> {
    Arc::new(FilterChain {
        name: name.into(),
        matcher,
        tls: None,
        rbac: Vec::new(),
        kind: ChainKind::Tcp(Arc::new(TcpProxy {
            stat_prefix: "t".into(),
            clusters: vec![("c".into(), 1)],
            idle_timeout: None,
            max_connect_attempts: 1,
            access_log: false,
        })),
    })
}

fn listener(chains: Vec<Arc<FilterChain>>) -> Listener {
    Listener {
        name: "l".into(),
        direction: Direction::Inbound,
        address: "0.0.0.0:15006".parse().expect("address"),
        bind: true,
        use_original_dst: true,
        inspect_tls: true,
        inspect_http: true,
        proxy_protocol: false,
        inspect_timeout: Duration::from_secs(5),
        chains,
        default_chain: Some(chain("default", ChainMatch::default())),
    }
}

fn pick(listener: &Listener, port: u16, tls: bool, alpn: &[&[u8]]) -> String {
    let facts = ConnFacts {
        source: "10.0.0.9:4000".parse().expect("address"),
        destination: SocketAddr::from(([10, 0, 0, 1], port)),
        transport: if tls {
            Transport::Tls
        } else {
            Transport::RawBuffer
        },
        server_name: None,
        application_protocols: alpn,
    };
    listener.chain(&facts).expect("a chain").name.to_string()
}

#[test]
fn the_most_specific_chain_wins_whatever_the_order() {
    let by_port = ChainMatch {
        destination_port: Some(80),
        ..ChainMatch::default()
    };
    let mesh = ChainMatch {
        destination_port: Some(80),
        transport: Some(Transport::Tls),
        application_protocols: vec![b"outrigger".as_slice().into()],
        ..ChainMatch::default()
    };
    for chains in [
        vec![chain("port", by_port.clone()), chain("mesh", mesh.clone())],
        vec![chain("mesh", mesh), chain("port", by_port)],
    ] {
        let l = listener(chains);
        assert_eq!(pick(&l, 80, true, &[b"outrigger"]), "mesh");
        assert_eq!(pick(&l, 80, true, &[b"h2"]), "port");
        assert_eq!(pick(&l, 80, false, &[]), "port");
        assert_eq!(pick(&l, 81, true, &[b"outrigger"]), "default");
    }
}

#[test]
fn an_exact_server_name_beats_a_wildcard() {
    let named = |n: &str, s: &str| {
        chain(
            n,
            ChainMatch {
                server_names: vec![s.into()],
                ..ChainMatch::default()
            },
        )
    };
    let l = listener(vec![
        named("wild", "*.shop.example.com"),
        named("exact", "a.shop.example.com"),
        named("wide", "*.example.com"),
    ]);
    let facts = |name| ConnFacts {
        source: "10.0.0.9:4000".parse().expect("address"),
        destination: "10.0.0.1:443".parse().expect("address"),
        transport: Transport::Tls,
        server_name: name,
        application_protocols: &[],
    };
    let got = |name| l.chain(&facts(name)).expect("a chain").name.to_string();
    assert_eq!(got(Some("a.shop.example.com")), "exact");
    assert_eq!(got(Some("b.shop.example.com")), "wild");
    assert_eq!(got(Some("b.example.com")), "wide");
    assert_eq!(got(None), "default");
}
