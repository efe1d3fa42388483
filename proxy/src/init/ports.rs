//! Lists of ports, read strictly: a rule that means something else than was written would open or
//! close a port without a word (KU-09).

use std::{fmt, ops::RangeInclusive};

/// Ports and ranges, sorted and joined.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortSet(Vec<RangeInclusive<u16>>);

impl PortSet {
    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
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

/// Reads `80, 443,8000-8010`. Overlaps and duplicates are joined.
///
/// # Errors
/// Says which part is no port or range from 1 to 65535.
pub fn parse_ports(text: &str) -> Result<PortSet, String> {
    let port = |part: &str| match part.trim().parse::<u16>() {
        Ok(port @ 1..) => Ok(port),
        _ => Err(format!("{part:?} is not a port from 1 to 65535")),
    };
    let mut all = Vec::new();
    for part in text.split(',').filter(|_| !text.trim().is_empty()) {
        all.push(match part.split_once('-') {
            None => {
                let port = port(part)?;
                port..=port
            }
            Some((from, to)) => {
                let range = port(from)?..=port(to)?;
                if range.is_empty() {
                    return Err(format!("{:?} is a range that ends before it begins", part));
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
