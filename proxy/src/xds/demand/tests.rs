//! Tests of the table of destinations.

use std::net::Ipv4Addr;

use super::*;

const IDLE: Duration = Duration::from_secs(3600);

fn address(n: u32) -> SocketAddr {
    SocketAddr::new(Ipv4Addr::from(0x0a00_0000 + n).into(), 80)
}

fn ask(table: &mut Destinations, n: u32) -> oneshot::Receiver<Demanded> {
    let (answer, heard) = oneshot::channel();
    let ask = Ask {
        address: address(n),
        answer,
    };
    table.ask(ask, true);
    heard
}

#[test]
fn a_destination_and_the_name_of_its_listener_are_each_others_inverse() {
    for text in ["10.0.0.1:80", "[2001:db8::1]:8080"] {
        let address: SocketAddr = text.parse().expect("an address");
        let name = listener_name(address);
        assert_eq!(&*name, format!("outbound/{text}"));
        assert_eq!(address_of(&name), Some(address));
    }
    for bad in [
        "outbound",
        "outbound/",
        "outbound/10.0.0.1",
        "inbound/10.0.0.1:80",
    ] {
        assert_eq!(address_of(bad), None, "{bad}");
    }
    assert_eq!(
        address_of("outbound/[2001:0db8::1]:80"),
        None,
        "one name for one address"
    );
}

#[tokio::test(start_paused = true)]
async fn mapped_and_plain_addresses_are_one_destination() {
    let (mut table, demand, _asked) = Destinations::new(IDLE);
    drop(ask(&mut table, 1));
    table.resolve(&|_| State::Known);
    let mapped: SocketAddr = "[::ffff:10.0.0.1]:80".parse().expect("an address");
    assert!(matches!(demand.peek(mapped), Some(Demanded::Known(_))));
}

#[tokio::test(start_paused = true)]
async fn the_table_is_bounded_and_the_longest_unused_makes_room() {
    let (mut table, demand, _asked) = Destinations::new(IDLE);
    for n in 0..u32::try_from(MAX_DESTINATIONS).expect("fits") {
        assert!(table.prefetched(address(n)));
    }
    table.resolve(&|_| State::Known);
    let used = demand.peek(address(0));
    tokio::time::advance(Duration::from_secs(10)).await;
    for n in 2..5000 {
        drop(demand.peek(address(n)));
    }
    drop(ask(&mut table, 100_000));
    assert_eq!(table.len(), MAX_DESTINATIONS);
    table.resolve(&|_| State::Known);
    assert!(demand.peek(address(0)).is_some(), "in use");
    assert!(demand.peek(address(1)).is_none(), "the longest unused");
    drop(used);
}

#[tokio::test(start_paused = true)]
async fn absent_destinations_make_room_before_known_ones() {
    let (mut table, demand, _asked) = Destinations::new(IDLE);
    let last = u32::try_from(MAX_DESTINATIONS).expect("fits") - 1;
    for n in 0..=last {
        assert!(table.prefetched(address(n)));
    }
    let absent = listener_name(address(last));
    table.resolve(&|name| {
        if *name == *absent {
            State::Absent
        } else {
            State::Known
        }
    });
    tokio::time::advance(Duration::from_secs(10)).await;
    drop(demand.peek(address(last)));
    drop(ask(&mut table, 100_000));
    table.resolve(&|_| State::Known);
    assert!(demand.peek(address(last)).is_none());
    assert!(demand.peek(address(0)).is_some());
}

#[tokio::test(start_paused = true)]
async fn when_every_place_is_in_use_a_caller_is_told_so_at_once() {
    let (mut table, demand, _asked) = Destinations::new(IDLE);
    let last = u32::try_from(MAX_DESTINATIONS).expect("fits");
    for n in 0..last {
        assert!(table.prefetched(address(n)));
    }
    table.resolve(&|_| State::Known);
    let guards: Vec<_> = (0..last).map(|n| demand.peek(address(n))).collect();
    assert!(matches!(
        ask(&mut table, 100_000).try_recv(),
        Ok(Demanded::Unavailable)
    ));
    assert_eq!(table.len(), MAX_DESTINATIONS);
    drop(guards);
}

#[tokio::test(start_paused = true)]
async fn the_number_of_waiting_callers_is_bounded() {
    let (mut table, _demand, _asked) = Destinations::new(IDLE);
    let mut waiting: Vec<_> = (0..MAX_WAITERS).map(|_| ask(&mut table, 1)).collect();
    assert!(matches!(
        ask(&mut table, 1).try_recv(),
        Ok(Demanded::Unavailable)
    ));
    assert!(waiting[0].try_recv().is_err(), "still waiting");
    // Callers that gave up leave their place.
    waiting.clear();
    table.resolve(&|_| State::Asked);
    drop(ask(&mut table, 1));
    assert!(ask(&mut table, 1).try_recv().is_err(), "waiting again");
}

#[tokio::test(start_paused = true)]
async fn a_destination_in_use_survives_the_sweep_and_an_unused_one_is_hidden_first() {
    let (mut table, demand, _asked) = Destinations::new(IDLE);
    drop(ask(&mut table, 1));
    drop(ask(&mut table, 2));
    table.resolve(&|_| State::Known);
    let guard = demand.peek(address(1));
    tokio::time::advance(IDLE).await;
    assert!(!table.sweep());
    assert!(demand.peek(address(2)).is_none(), "hidden");
    assert!(table.sweep(), "and gone at the next sweep");
    assert_eq!(table.len(), 1);
    drop(guard);
    assert!(!table.sweep(), "used until just now");
}

#[tokio::test(start_paused = true)]
async fn a_hidden_destination_that_is_asked_for_again_is_not_lost() {
    let (mut table, demand, _asked) = Destinations::new(IDLE);
    drop(ask(&mut table, 1));
    table.resolve(&|_| State::Known);
    tokio::time::advance(IDLE).await;
    table.sweep();
    assert!(matches!(
        ask(&mut table, 1).try_recv(),
        Ok(Demanded::Known(_))
    ));
    assert!(matches!(demand.peek(address(1)), Some(Demanded::Known(_))));
    assert!(!table.sweep());
}

#[tokio::test(start_paused = true)]
async fn without_a_table_what_is_not_in_the_snapshot_is_absent() {
    let demand = Demand::none();
    assert!(matches!(
        demand.destination(address(1)).await,
        Demanded::Absent
    ));
}

#[tokio::test(start_paused = true)]
async fn when_the_stream_is_gone_for_good_nobody_waits() {
    let (table, demand, asked) = Destinations::new(IDLE);
    drop((table, asked));
    assert!(matches!(
        demand.destination(address(1)).await,
        Demanded::Unavailable
    ));
}
