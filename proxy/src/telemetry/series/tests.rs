//! Finding, bounding and dropping series.

use super::*;

const fn subject<'a>(cluster: &'a str, route: &'a str, peer: &'a str) -> Subject<'a> {
    Subject {
        direction: Direction::Outbound,
        cluster,
        route,
        peer,
    }
}

fn series(store: &Store) -> usize {
    let mut n = 0;
    store.each_route(|_, _| n += 1);
    n - 2 // the two that collect what does not fit
}

#[test]
fn one_subject_has_one_series() {
    let store = Store::default();
    let (a, own) = store.get(&subject("cart", "r", "p"));
    let (b, same) = store.get(&subject("cart", "r", "p"));
    let (c, still) = store.get(&subject("cart", "r", "q"));
    assert!(Arc::ptr_eq(&a, &b) && !Arc::ptr_eq(&a, &c));
    assert!(Arc::ptr_eq(&own, &same) && Arc::ptr_eq(&own, &still));
}

#[test]
fn ob_04_peers_beyond_the_limit_are_counted_as_other() {
    let store = Store::default();
    for n in 0..10_000 {
        let (series, _) = store.get(&subject("cart", "r", &format!("peer-{n}")));
        series.outcomes.count(200);
    }
    assert_eq!(series(&store), MAX_PEERS + 1);
    let mut other = 0;
    store.each_route(|of, series| {
        if of.peer == OTHER && of.cluster == "cart" {
            other = series.outcomes.iter().map(|(_, n)| n).sum();
        }
    });
    assert_eq!(other, 10_000 - MAX_PEERS as u64);
}

#[test]
fn ob_04_series_are_bounded_in_all_and_die_with_their_configuration() {
    let store = Store::default();
    for n in 0..2 * MAX_SERIES {
        store.get(&subject("cart", &format!("r{n}"), ""));
    }
    assert_eq!(series(&store), MAX_SERIES);
    assert_eq!(store.overflowed(), MAX_SERIES as u64);
    store.retain(&|cluster, route| cluster == "cart" && route == "r7");
    assert_eq!(series(&store), 1);
    store.get(&subject("cart", "new", ""));
    assert_eq!(series(&store), 2, "there is room again");
    store.retain(&|_, _| false);
    assert_eq!(series(&store), 0);
}

#[test]
fn ob_04_invented_status_codes_share_the_last_counter() {
    let outcomes = Outcomes::default();
    for key in 0..1000 {
        outcomes.count(key);
        outcomes.count(7);
    }
    let all: Vec<_> = outcomes.iter().collect();
    assert_eq!(all.len(), MAX_OUTCOMES + 1);
    assert_eq!(all.iter().map(|(_, n)| n).sum::<u64>(), 2000);
    assert!(all.contains(&(7, 1001)));
    assert_eq!(all[MAX_OUTCOMES].0, Outcomes::OVERFLOW);
}

#[test]
fn workers_count_into_one_list() {
    let outcomes = Outcomes::default();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..4000).for_each(|n| outcomes.count(n % 40)));
        }
    });
    assert_eq!(outcomes.iter().count(), 40);
    assert!(outcomes.iter().all(|(_, n)| n == 400));
}

#[test]
fn ob_06_a_histogram_tells_sub_millisecond_times_apart() {
    let histogram = Histogram::default();
    assert_eq!(histogram.value(), None);
    for micros in [80, 100, 200, 400, 900, 100_000_000] {
        histogram.observe(Duration::from_micros(micros));
    }
    let Some(Value::Histogram { sum, buckets }) = histogram.value() else {
        panic!("a histogram");
    };
    assert!((sum - 100.00168).abs() < 1e-9, "{sum}");
    let counts: Vec<_> = buckets.iter().map(|(_, n)| *n).take(4).collect();
    assert_eq!(counts, [2, 1, 1, 1]);
    assert_eq!(buckets.last(), Some(&(f64::INFINITY, 1)));
}
