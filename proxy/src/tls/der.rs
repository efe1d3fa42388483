//! What a certificate says, read from its DER. `webpki` checks these fields but does not show them.

/// The parts of a certificate that logs and renewal need (RFC 5280 §4.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    /// Seconds since 1970.
    pub(super) not_before: u64,
    pub(super) not_after: u64,
    /// Who it is for, as `CN=…, O=…`; empty for a leaf that is named by its alternative names only.
    pub(super) subject: String,
    pub(super) issuer: String,
    /// Key identifiers in hexadecimal: they tell apart the keys of an authority that keeps its name
    /// when it changes its key (RFC 5280 §4.2.1.1, §4.2.1.2).
    pub(super) subject_key: Option<String>,
    pub(super) issuer_key: Option<String>,
}

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const INTEGER: u8 = 0x02;
const OCTETS: u8 = 0x04;
const OID: u8 = 0x06;
/// `id-ce-subjectKeyIdentifier` and `id-ce-authorityKeyIdentifier`.
const SUBJECT_KEY: &[u8] = &[0x55, 0x1d, 0x0e];
const ISSUER_KEY: &[u8] = &[0x55, 0x1d, 0x23];
/// Of a name, for logs; of a key identifier, in bytes.
const MAX_NAME: usize = 256;
const MAX_KEY: usize = 32;

impl Facts {
    /// Reads a certificate; `None` when it is none.
    pub(super) fn of(der: &[u8]) -> Option<Self> {
        let (certificate, _) = element(der, SEQUENCE)?;
        let (mut tbs, _) = element(certificate, SEQUENCE)?;
        if tbs.first() == Some(&0xa0) {
            tbs = element(tbs, 0xa0)?.1; // version
        }
        tbs = element(tbs, INTEGER)?.1; // serial number
        tbs = element(tbs, SEQUENCE)?.1; // signature
        let (issuer, tbs) = element(tbs, SEQUENCE)?;
        let (times, tbs) = element(tbs, SEQUENCE)?;
        let (subject, tbs) = element(tbs, SEQUENCE)?;
        let (_key, mut tbs) = element(tbs, SEQUENCE)?;
        for unique_id in [0x81, 0x82] {
            if tbs.first() == Some(&unique_id) {
                tbs = element(tbs, unique_id)?.1;
            }
        }
        let extensions = element(tbs, 0xa3)
            .and_then(|(wrapped, _)| element(wrapped, SEQUENCE))
            .map_or(&[][..], |(all, _)| all);
        let (not_before, rest) = time(times)?;
        let (not_after, _) = time(rest)?;
        let subject_key = extension(extensions, SUBJECT_KEY)
            .and_then(|value| element(value, OCTETS))
            .map(|(key, _)| hex(key));
        let issuer_key = extension(extensions, ISSUER_KEY)
            .and_then(|value| element(value, SEQUENCE))
            .and_then(|(value, _)| element(value, 0x80))
            .map(|(key, _)| hex(key));
        Some(Self {
            not_before,
            not_after,
            subject: name(subject),
            issuer: name(issuer),
            subject_key,
            issuer_key,
        })
    }

    /// Whom it is of, for a log line.
    pub(super) fn named_subject(&self) -> String {
        named(&self.subject, self.subject_key.as_deref())
    }

    /// Who signed it, for a log line.
    pub(super) fn named_issuer(&self) -> String {
        named(&self.issuer, self.issuer_key.as_deref())
    }
}

fn named(name: &str, key: Option<&str>) -> String {
    let name = if name.is_empty() { "(no name)" } else { name };
    // Eight digits tell the keys of one bundle apart.
    let key = key.and_then(|key| key.get(..8));
    key.map_or_else(|| name.to_owned(), |key| format!("{name} [key {key}]"))
}

pub(super) fn hex(bytes: &[u8]) -> String {
    let bytes = bytes.get(..MAX_KEY).unwrap_or(bytes);
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The content of the DER element that starts `bytes`, and what follows it.
fn element(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (head, rest) = bytes.split_first()?;
    if *head != tag {
        return None;
    }
    let (first, rest) = rest.split_first()?;
    let (length, rest) = if *first < 0x80 {
        (usize::from(*first), rest)
    } else {
        let count = usize::from(*first & 0x7f);
        let (digits, rest) = rest.split_at_checked(count)?;
        if count > 4 {
            return None;
        }
        let length = digits.iter().fold(0, |n, b| n << 8 | usize::from(*b));
        (length, rest)
    };
    rest.split_at_checked(length)
}

/// The value of an extension (RFC 5280 §4.2).
fn extension<'d>(mut all: &'d [u8], wanted: &[u8]) -> Option<&'d [u8]> {
    while let Some((one, rest)) = element(all, SEQUENCE) {
        let (oid, mut value) = element(one, OID)?;
        if value.first() == Some(&0x01) {
            value = element(value, 0x01)?.1; // critical
        }
        if oid == wanted {
            return element(value, OCTETS).map(|(value, _)| value);
        }
        all = rest;
    }
    None
}

/// A distinguished name as text, control characters escaped.
fn name(mut rdns: &[u8]) -> String {
    let mut text = String::new();
    while let Some((mut set, rest)) = element(rdns, SET) {
        while let Some((pair, others)) = element(set, SEQUENCE) {
            set = others;
            let Some((oid, value)) = element(pair, OID) else {
                continue;
            };
            let kind = match oid {
                [0x55, 0x04, 0x03] => "CN",
                [0x55, 0x04, 0x06] => "C",
                [0x55, 0x04, 0x0a] => "O",
                [0x55, 0x04, 0x0b] => "OU",
                _ => continue,
            };
            let string = value.first().and_then(|tag| element(value, *tag));
            let Some((string, _)) = string else { continue };
            if !text.is_empty() {
                text.push_str(", ");
            }
            text.push_str(kind);
            text.push('=');
            text.extend(String::from_utf8_lossy(string).escape_debug());
        }
        rdns = rest;
    }
    if let Some((end, _)) = text.char_indices().nth(MAX_NAME) {
        text.truncate(end);
    }
    text
}

/// UTCTime or GeneralizedTime as seconds since 1970.
fn time(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (text, rest, long) = match element(bytes, 0x17) {
        Some((text, rest)) => (text, rest, false),
        None => element(bytes, 0x18).map(|(text, rest)| (text, rest, true))?,
    };
    let text = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    let (year, text) = text.split_at_checked(if long { 4 } else { 2 })?;
    let year: u64 = year.parse().ok()?;
    let year = match (long, year) {
        (true, year) => year,
        (false, year) if year >= 50 => 1900 + year,
        (false, year) => 2000 + year,
    };
    let part = |n: usize| text.get(n * 2..n * 2 + 2)?.parse::<u64>().ok();
    let (month, day) = (part(0)?, part(1)?);
    let seconds = part(2)? * 3600 + part(3)? * 60 + part(4)?;
    if year < 1970 || !(1..=12).contains(&month) {
        return None;
    }
    // Days from 1970 to a civil date, by counting years from March.
    let (y, m) = if month <= 2 {
        (year - 1, month + 9)
    } else {
        (year, month - 3)
    };
    let days = y * 365 + y / 4 - y / 100 + y / 400 + (m * 153 + 2) / 5 + day - 1;
    Some((days.checked_sub(719_468)? * 86_400 + seconds, rest))
}
