//! Durations as people write them: `500ms`, `30s`, `1h30m`.

use std::time::Duration;

/// Reads a duration as Go, Kubernetes and the Gateway API write it (GEP-2257): numbers with a unit
/// of `h`, `m`, `s` or `ms`, one after the other.
///
/// # Errors
/// When it is written otherwise, or too long to be counted.
pub fn parse(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is no duration like 500ms, 30s or 1h30m");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    if rest.is_empty() {
        return Err(bad());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
        let (number, tail) = rest.split_at_checked(digits).ok_or_else(bad)?;
        let number: u64 = number.parse().map_err(|_| bad())?;
        let (unit, tail) = match tail.strip_prefix("ms") {
            Some(tail) => (1, tail),
            None => {
                let mut chars = tail.chars();
                let unit = match chars.next() {
                    Some('s') => 1_000,
                    Some('m') => 60_000,
                    Some('h') => 3_600_000,
                    _ => return Err(bad()),
                };
                (unit, chars.as_str())
            }
        };
        let part = Duration::from_millis(number.checked_mul(unit).ok_or_else(bad)?);
        total = total.checked_add(part).ok_or_else(bad)?;
        rest = tail;
    }
    Ok(total)
}

/// Writes a duration so that [`parse`] reads it.
#[must_use]
pub fn format(value: Duration) -> String {
    let (seconds, millis) = (value.as_secs(), value.subsec_millis());
    let mut out = String::new();
    let parts = [
        (seconds / 3_600, "h"),
        (seconds / 60 % 60, "m"),
        (seconds % 60, "s"),
        (u64::from(millis), "ms"),
    ];
    for (n, unit) in parts.into_iter().filter(|(n, _)| *n > 0) {
        out.push_str(&n.to_string());
        out.push_str(unit);
    }
    if out.is_empty() { "0s".into() } else { out }
}
