//! For tests that keep futures small: what an async function's future takes, without calling it.
//! Memory per idle connection and per request in flight begins with these.

/// Size of the future of a function of three arguments.
pub(crate) fn of_3<A, B, C, F: Future>(_: impl FnOnce(A, B, C) -> F) -> usize {
    size_of::<F>()
}

/// Of four.
pub(crate) fn of_4<A, B, C, D, F: Future>(_: impl FnOnce(A, B, C, D) -> F) -> usize {
    size_of::<F>()
}

/// Of five.
pub(crate) fn of_5<A, B, C, D, E, F: Future>(_: impl FnOnce(A, B, C, D, E) -> F) -> usize {
    size_of::<F>()
}

/// Fails when one is larger than its limit, and names them all.
pub(crate) fn check(sizes: &[(&str, usize, usize)]) {
    let over = sizes.iter().any(|(_, size, limit)| size > limit);
    assert!(!over, "name, bytes, limit: {sizes:?}");
}
