//! What somebody may have meant who wrote something that is not known.

/// Longest text that is compared; names of fields and kinds are shorter.
const MAX_COMPARED: usize = 64;

/// The one of `known` that looks most like `given`, if it looks like a slip.
#[must_use]
pub(super) fn closest<'a>(
    given: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let distances = known.into_iter().map(|one| (distance(given, one), one));
    // A third of the letters wrong is a slip; more is another word.
    let close = distances.filter(|(far, one)| *far <= (one.len() / 3).max(1));
    close.min_by_key(|(far, _)| *far).map(|(_, one)| one)
}

/// Adds to serde's message about an unknown field or value the known one that looks most like it.
#[must_use]
pub(super) fn did_you_mean(message: &str) -> String {
    let mut quoted = message.split('`').skip(1).step_by(2);
    let unknown = message.starts_with("unknown field") || message.starts_with("unknown variant");
    let (true, Some(given)) = (unknown, quoted.next()) else {
        return message.to_owned();
    };
    match closest(given, quoted) {
        Some(known) => format!("{message}; did you mean `{known}`?"),
        None => message.to_owned(),
    }
}

/// Letters to change, add, drop or swap with their neighbour, regardless of case.
fn distance(a: &str, b: &str) -> usize {
    let letters = |text: &str| -> Vec<char> {
        let lower = text.chars().flat_map(char::to_lowercase);
        lower.take(MAX_COMPARED).collect()
    };
    let (a, b) = (letters(a), letters(b));
    let at = |row: &[usize], j: usize| row.get(j).copied().unwrap_or(usize::MAX / 2);
    let mut before: Vec<usize> = Vec::new();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    let mut last = None;
    for (i, x) in a.iter().enumerate() {
        let mut next = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let mut best = (at(&row, j) + usize::from(x != y))
                .min(at(&row, j + 1) + 1)
                .min(at(&next, j) + 1);
            let swapped = j > 0 && last == Some(y) && b.get(j - 1) == Some(x);
            if swapped {
                best = best.min(at(&before, j - 1) + 1);
            }
            next.push(best);
        }
        before = std::mem::replace(&mut row, next);
        last = Some(x);
    }
    at(&row, b.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_count_slips() {
        for (a, b, far) in [
            ("", "", 0),
            ("abc", "", 3),
            ("timeout", "timeout", 0),
            ("Timeout", "tIMEOUT", 0),
            ("timeuot", "timeout", 1),
            ("timeout", "timeouts", 1),
            ("rety", "retry", 1),
            ("port", "prot", 1),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!(distance(a, b), far, "{a} {b}");
            assert_eq!(distance(b, a), far, "{b} {a}");
        }
    }

    #[test]
    fn a_slip_is_told_and_another_word_is_not() {
        let message = "unknown field `timeuots`, expected `timeouts` or `retry`";
        assert_eq!(
            did_you_mean(message),
            format!("{message}; did you mean `timeouts`?")
        );
        for same in [
            "unknown field `colour`, expected `timeouts` or `retry`",
            "missing field `timeout`",
            "invalid value: integer `-1`, expected u32",
        ] {
            assert_eq!(did_you_mean(same), same);
        }
        assert_eq!(
            closest("HttpRout", ["HTTPRoute", "GRPCRoute"]),
            Some("HTTPRoute")
        );
        assert_eq!(closest("Pod", ["HTTPRoute", "Service"]), None);
    }
}
