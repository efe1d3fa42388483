//! Which names are subscribed: those that the roots and the destinations lead to.

use std::{collections::BTreeSet, sync::Arc};

use super::{Client, lock};
use crate::xds::{assemble::Assembler, kind::Kind, protocol::Name, store::Store};

impl Client {
    /// Subscribes to exactly what is led to from the roots and the destinations, and forgets the
    /// rest. Returns whether anything was forgotten.
    pub(super) fn want(&mut self) -> bool {
        let mut wanted: Vec<(Kind, BTreeSet<Name>)> = Vec::new();
        {
            let store = lock(&self.store);
            let reach = Reach {
                store: &store,
                assembler: &self.assembler,
            };
            let all = |kind| -> BTreeSet<Name> {
                store
                    .all_held(kind)
                    .map(|(name, _)| Arc::clone(name))
                    .collect()
            };
            let listeners = if self.protocol.wants_all(Kind::Listener) {
                all(Kind::Listener)
            } else {
                let mut names = self.destinations.names();
                names.extend(self.roots.iter().cloned());
                names
            };
            let routes = reach.of(&[(Kind::Listener, &listeners)], Kind::Route);
            let from = [(Kind::Listener, &listeners), (Kind::Route, &routes)];
            let clusters = if self.protocol.wants_all(Kind::Cluster) {
                all(Kind::Cluster)
            } else {
                reach.closure(reach.of(&from, Kind::Cluster))
            };
            let endpoints = reach.of(&[(Kind::Cluster, &clusters)], Kind::Endpoints);
            let from = [(Kind::Listener, &listeners), (Kind::Cluster, &clusters)];
            let secrets = reach.of(&from, Kind::Secret);
            if !self.protocol.wants_all(Kind::Listener) {
                wanted.push((Kind::Listener, listeners));
            }
            if !self.protocol.wants_all(Kind::Cluster) {
                wanted.push((Kind::Cluster, clusters));
            }
            wanted.push((Kind::Route, routes));
            wanted.push((Kind::Endpoints, endpoints));
            wanted.push((Kind::Secret, secrets));
        }
        let mut forgotten = false;
        for (kind, names) in wanted {
            let change = self.protocol.want(kind, names);
            let mut store = lock(&self.store);
            for name in change.dropped {
                store.forget(kind, &name);
                forgotten = true;
            }
            for name in change.added {
                store.expect(kind, &name);
            }
        }
        self.dirty |= forgotten;
        forgotten
    }
}

/// Follows references, of what is held and of what is in use meanwhile.
struct Reach<'a> {
    store: &'a Store,
    assembler: &'a Assembler,
}

impl Reach<'_> {
    fn of(&self, from: &[(Kind, &BTreeSet<Name>)], to: Kind) -> BTreeSet<Name> {
        let mut out = BTreeSet::new();
        for (kind, names) in from {
            for name in *names {
                self.add(*kind, name, to, &mut out);
            }
        }
        out
    }

    fn add(&self, kind: Kind, name: &Name, to: Kind, out: &mut BTreeSet<Name>) {
        let mut take = |refs: &[(Kind, Name)]| {
            let names = refs.iter().filter(|(kind, _)| *kind == to);
            out.extend(names.map(|(_, name)| Arc::clone(name)));
        };
        let held = self.store.held(kind, name);
        if let Some(held) = held {
            take(&held.refs);
        }
        if held.is_none_or(|held| !self.assembler.is_current(kind, name, held)) {
            take(&self.assembler.refs_in_use(kind, name));
        }
    }

    /// Aggregates name clusters in turn.
    fn closure(&self, mut clusters: BTreeSet<Name>) -> BTreeSet<Name> {
        let mut fresh = clusters.clone();
        while !fresh.is_empty() {
            let next = self.of(&[(Kind::Cluster, &fresh)], Kind::Cluster);
            fresh = next.difference(&clusters).cloned().collect();
            clusters.extend(fresh.iter().cloned());
        }
        clusters
    }
}
