//! Lists of ports, networks and ids, read strictly: a rule that means something else than was
//! written would open or close a port without a word (KU-09).

use std::{fmt, net::IpAddr, ops::RangeInclusive};

use ipnet::IpNet;

use super::Ids;

/// Ports and ranges, sorted and joined.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortSet(Vec<RangeInclusive<u16>>);

impl PortSet {
    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `port` is one of them.
    #[must_use]
    pub fn contains(&self, port: u16) -> bool {
        self.0.iter().any(|range| range.contains(&port))
    }

    /// Whether it is every port there is.
    #[must_use]
    pub fn is_all(&self) -> bool {
        self.0 == [1..=u16::MAX]
    }

    /// The same with `more` added.
    #[must_use]
    pub fn with(&self, more: &[u16]) -> Self {
        let mut all = self.0.clone();
        all.extend(more.iter().map(|port| *port..=*port));
        Self(join(all))
    }

    /// The ranges in order; none touches another.
    pub fn iter(&self) -> impl Iterator<Item = &RangeInclusive<u16>> {
        self.0.iter()
    }
}

impl fmt::Display for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, range) in self.0.iter().enumerate() {
            if n > 0 {
                f.write_str(", ")?;
            }
            if range.start() == range.end() {
                write!(f, "{}", range.start())?;
            } else {
                write!(f, "{}-{}", range.start(), range.end())?;
            }
        }
        Ok(())
    }
}

/// The parts of a list; none of an empty one.
fn parts(text: &str) -> impl Iterator<Item = &str> {
    let empty = text.trim().is_empty();
    text.split(',').map(str::trim).filter(move |_| !empty)
}

/// Reads `80, 443,8000-8010`, or `*` for all. Overlaps and duplicates are joined.
///
/// # Errors
/// Says which part is no port or range from 1 to 65535.
pub fn parse_ports(text: &str) -> Result<PortSet, String> {
    if text.trim() == "*" {
        return Ok(PortSet(vec![1..=u16::MAX]));
    }
    let port = |part: &str| {
        match part.trim() {
            digits if digits.bytes().all(|b| b.is_ascii_digit()) => digits.parse().ok(),
            _ => None,
        }
        .filter(|port| *port > 0)
        .ok_or_else(|| format!("{part:?} is not a port from 1 to 65535"))
    };
    let mut all = Vec::new();
    for part in parts(text) {
        all.push(match part.split_once('-') {
            None => {
                let port = port(part)?;
                port..=port
            }
            Some((from, to)) => {
                let range = port(from)?..=port(to)?;
                if range.is_empty() {
                    return Err(format!("{part:?} is a range that ends before it begins"));
                }
                range
            }
        });
    }
    Ok(PortSet(join(all)))
}

fn join(mut all: Vec<RangeInclusive<u16>>) -> Vec<RangeInclusive<u16>> {
    all.sort_by_key(|range| *range.start());
    let mut joined: Vec<RangeInclusive<u16>> = Vec::new();
    for range in all {
        match joined.last_mut() {
            Some(last) if u32::from(*range.start()) <= u32::from(*last.end()) + 1 => {
                *last = *last.start()..=*last.end().max(range.end());
            }
            _ => joined.push(range),
        }
    }
    joined
}

/// Networks of either family, sorted and joined.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetSet(Vec<IpNet>);

impl NetSet {
    /// The networks of one family.
    pub fn family(&self, ipv6: bool) -> impl Iterator<Item = &IpNet> {
        self.0
            .iter()
            .filter(move |net| matches!(net, IpNet::V6(_)) == ipv6)
    }

    /// Whether it is all addresses of that family.
    #[must_use]
    pub fn is_all(&self, ipv6: bool) -> bool {
        self.family(ipv6).any(|net| net.prefix_len() == 0)
    }

    /// Whether `address` is in one of them.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.iter().any(|net| net.contains(&address))
    }
}

/// Reads `10.0.0.0/8, fd00::/8, 192.0.2.7`, or `*` for all. What lies within another is left out.
///
/// # Errors
/// Says which part is no address or network.
pub fn parse_nets(text: &str) -> Result<NetSet, String> {
    let text = if text.trim() == "*" {
        "0.0.0.0/0,::/0"
    } else {
        text
    };
    let net = |part: &str| {
        let net = part.parse::<IpNet>().ok();
        net.or_else(|| part.parse::<IpAddr>().ok().map(IpNet::from))
            .ok_or_else(|| format!("{part:?} is neither an address nor a network (10.0.0.0/8)"))
    };
    let all: Vec<_> = parts(text).map(net).collect::<Result<_, _>>()?;
    Ok(NetSet(IpNet::aggregate(&all)))
}

impl Ids {
    /// In order.
    pub fn iter(&self) -> impl Iterator<Item = &u32> {
        self.0.iter()
    }
}

/// Reads `0, 1000`.
///
/// # Errors
/// Says which part is no user id.
pub fn parse_ids(text: &str) -> Result<Ids, String> {
    let id = |part: &str| {
        let id = part.parse::<u32>();
        id.map_err(|_| format!("{part:?} is not a numeric user id"))
    };
    let mut all: Vec<_> = parts(text).map(id).collect::<Result<_, _>>()?;
    all.sort_unstable();
    all.dedup();
    Ok(Ids(all))
}
