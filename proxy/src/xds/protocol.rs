//! The ADS protocol without sockets: what is subscribed, which nonce answers what, and which
//! request is due next. Both variants, incremental and state of the world (xds_protocol.rst).
//!
//! It promises: a nonce never crosses streams; an ACK or NACK never changes a subscription (istiod
//! reads such a request as a mistake); every wanted name is on the wire exactly once a stream
//! unless it was forgotten in between; and a name nobody answered for is given up after
//! [`NOT_THERE_AFTER`], counted from the moment the server could know of it (gRFC A57).

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use super::kind::{Kind, PerKind};

/// A subscribed name that the server said nothing about for so long does not exist (gRFC A57;
/// Envoy's `initial_fetch_timeout`).
pub const NOT_THERE_AFTER: Duration = Duration::from_secs(15);

/// Which form of ADS is spoken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Variant {
    /// Incremental: only what changed is sent.
    #[default]
    Delta,
    /// State of the world: every answer repeats the whole.
    Sotw,
}

/// A name of a resource.
pub(crate) type Name = Arc<str>;

/// A request to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) kind: Kind,
    /// Send who we are along with it: the first request of a stream.
    pub(crate) with_node: bool,
    pub(crate) nonce: String,
    /// Why the answer with that nonce was not (wholly) taken.
    pub(crate) error: Option<String>,
    pub(crate) body: Body,
}

/// How a subscription changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Difference {
    pub(crate) added: Vec<Name>,
    pub(crate) dropped: Vec<Name>,
}

/// What differs between the variants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Body {
    Delta {
        subscribe: Vec<Name>,
        unsubscribe: Vec<Name>,
        initial_versions: Vec<(Name, Name)>,
    },
    Sotw {
        version: String,
        names: Vec<Name>,
    },
}

/// The protocol state of one client, over the streams of its life.
#[derive(Debug)]
pub(crate) struct Protocol {
    variant: Variant,
    types: PerKind<TypeState>,
    /// When the present stream began; `None` without one.
    since: Option<Instant>,
    node_sent: bool,
    answered: bool,
}

#[derive(Debug, Default)]
struct TypeState {
    wildcard: bool,
    wanted: BTreeSet<Name>,
    /// Last version that was wholly accepted (state of the world); outlives streams.
    version: String,
    stream: OnStream,
}

/// What dies with the stream.
#[derive(Debug, Default)]
struct OnStream {
    opened: bool,
    /// Nothing changed since the last request was made.
    settled: bool,
    told: BTreeSet<Name>,
    told_wildcard: bool,
    /// A name was sent before, so that an empty list no longer means "everything".
    named_before: bool,
    /// Told, dropped since, and perhaps wanted again: has to be asked for anew.
    forgotten: BTreeSet<Name>,
    nonce: String,
    answered: bool,
    due: Option<Reply>,
    /// Until when an answer is waited for, by name.
    pending: BTreeMap<Name, Instant>,
}

#[derive(Debug)]
struct Reply {
    nonce: String,
    error: Option<String>,
}

impl Protocol {
    pub(crate) fn new(variant: Variant) -> Self {
        Self {
            variant,
            types: PerKind::default(),
            since: None,
            node_sent: false,
            answered: false,
        }
    }

    pub(crate) const fn variant(&self) -> Variant {
        self.variant
    }

    /// Subscribes to everything of a type.
    pub(crate) fn want_all(&mut self, kind: Kind) {
        let state = self.types.of_mut(kind);
        state.wildcard = true;
        state.stream.settled = false;
    }

    pub(crate) const fn wants_all(&self, kind: Kind) -> bool {
        self.types.of(kind).wildcard
    }

    /// Subscribes to exactly these names of a type, besides everything if [`Self::want_all`] was
    /// called. Returns the difference to what was wanted before.
    pub(crate) fn want(&mut self, kind: Kind, names: BTreeSet<Name>) -> Difference {
        let state = self.types.of_mut(kind);
        if state.wanted == names {
            return Difference::default();
        }
        let added = names.difference(&state.wanted).cloned().collect();
        let dropped: Vec<Name> = state.wanted.difference(&names).cloned().collect();
        for name in &dropped {
            state.stream.pending.remove(name);
            if state.stream.told.contains(name) {
                state.stream.forgotten.insert(Arc::clone(name));
            }
        }
        state.wanted = names;
        state.stream.settled = false;
        Difference { added, dropped }
    }

    /// Whether a resource of this name was asked for.
    pub(crate) fn wants(&self, kind: Kind, name: &str) -> bool {
        let state = self.types.of(kind);
        state.wildcard || state.wanted.contains(name)
    }

    /// Whether a resource of this name was asked for by name.
    pub(crate) fn wants_name(&self, kind: Kind, name: &str) -> bool {
        self.types.of(kind).wanted.contains(name)
    }

    /// A stream is open.
    pub(crate) fn connected(&mut self, now: Instant) {
        self.disconnected();
        self.since = Some(now);
    }

    /// The stream is gone; subscriptions and versions stay.
    pub(crate) fn disconnected(&mut self) {
        self.since = None;
        self.node_sent = false;
        self.answered = false;
        for (_, state) in self.types.iter_mut() {
            state.stream = OnStream::default();
        }
    }

    /// When the present stream began.
    pub(crate) const fn since(&self) -> Option<Instant> {
        self.since
    }

    /// Whether the server has answered anything on this stream.
    pub(crate) const fn answered(&self) -> bool {
        self.answered
    }

    /// Notes an answer. Returns whether it is the first of its type on this stream.
    pub(crate) fn received(&mut self, kind: Kind, nonce: &str) -> bool {
        self.answered = true;
        let stream = &mut self.types.of_mut(kind).stream;
        nonce.clone_into(&mut stream.nonce);
        !std::mem::replace(&mut stream.answered, true)
    }

    /// The server said something about this name: it is not waited for any more.
    pub(crate) fn heard_of(&mut self, kind: Kind, name: &str) {
        self.types.of_mut(kind).stream.pending.remove(name);
    }

    /// The answer with the newest nonce was taken whole.
    pub(crate) fn accept(&mut self, kind: Kind, version: &str) {
        let state = self.types.of_mut(kind);
        version.clone_into(&mut state.version);
        let nonce = state.stream.nonce.clone();
        state.stream.due = Some(Reply { nonce, error: None });
    }

    /// The answer with the newest nonce was not, or not wholly, taken.
    pub(crate) fn reject(&mut self, kind: Kind, error: String) {
        let state = self.types.of_mut(kind);
        let nonce = state.stream.nonce.clone();
        state.stream.due = Some(Reply {
            nonce,
            error: Some(error),
        });
    }

    /// The next request that is due. `held` gives the names and versions held of a type.
    pub(crate) fn poll(
        &mut self,
        now: Instant,
        held: &dyn Fn(Kind) -> Vec<(Name, Name)>,
    ) -> Option<Request> {
        self.since?;
        let variant = self.variant;
        let (kind, nonce, error, body) =
            self.types
                .iter_mut()
                .find_map(|(kind, state)| match variant {
                    Variant::Delta => state.poll_delta(kind, now, held),
                    Variant::Sotw => state.poll_sotw(kind, now, held),
                })?;
        let with_node = !std::mem::replace(&mut self.node_sent, true);
        Some(Request {
            kind,
            with_node,
            nonce,
            error,
            body,
        })
    }

    /// When the next name is to be given up.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let each = self.types.iter();
        each.filter_map(|(_, state)| state.stream.pending.values().min())
            .min()
            .copied()
    }

    /// Takes out the names that nobody answered for in time.
    pub(crate) fn overdue(&mut self, now: Instant) -> Vec<(Kind, Name)> {
        let mut out = Vec::new();
        for (kind, state) in self.types.iter_mut() {
            state.stream.pending.retain(|name, until| {
                let late = *until <= now;
                if late {
                    out.push((kind, Arc::clone(name)));
                }
                !late
            });
        }
        out
    }

    /// Whether the server owes an answer: a wildcard not answered for, or a name never seen.
    pub(crate) fn owed(&self) -> bool {
        self.types.iter().any(|(_, state)| {
            let stream = &state.stream;
            !stream.pending.is_empty() || (stream.told_wildcard && !stream.answered)
        })
    }
}

type Due = (Kind, String, Option<String>, Body);

impl TypeState {
    fn poll_delta(
        &mut self,
        kind: Kind,
        now: Instant,
        held: &dyn Fn(Kind) -> Vec<(Name, Name)>,
    ) -> Option<Due> {
        if let Some(reply) = self.stream.due.take() {
            let nothing = Body::Delta {
                subscribe: Vec::new(),
                unsubscribe: Vec::new(),
                initial_versions: Vec::new(),
            };
            return Some((kind, reply.nonce, reply.error, nothing));
        }
        if self.stream.settled {
            return None;
        }
        let stream = &mut self.stream;
        let again = stream.forgotten.intersection(&self.wanted);
        let mut subscribe: Vec<Name> = again.cloned().collect();
        subscribe.extend(self.wanted.difference(&stream.told).cloned());
        let unsubscribe: Vec<Name> = stream.told.difference(&self.wanted).cloned().collect();
        let wildcard_news = self.wildcard && !stream.told_wildcard;
        // An empty first request means everything; a name in it, or before it, takes that away.
        if wildcard_news && (stream.opened || !subscribe.is_empty()) {
            subscribe.push("*".into());
        }
        if subscribe.is_empty() && unsubscribe.is_empty() && !wildcard_news {
            stream.forgotten.clear();
            stream.settled = true;
            return None;
        }
        let initial_versions = if stream.opened {
            Vec::new()
        } else {
            held(kind)
        };
        self.told_now(now, &initial_versions);
        let body = Body::Delta {
            subscribe,
            unsubscribe,
            initial_versions,
        };
        Some((kind, String::new(), None, body))
    }

    fn poll_sotw(
        &mut self,
        kind: Kind,
        now: Instant,
        held: &dyn Fn(Kind) -> Vec<(Name, Name)>,
    ) -> Option<Due> {
        if self.stream.settled && self.stream.due.is_none() {
            return None;
        }
        let stream = &mut self.stream;
        let again: BTreeSet<Name> = stream
            .forgotten
            .intersection(&self.wanted)
            .cloned()
            .collect();
        let changed = stream.told != self.wanted
            || (self.wildcard && !stream.told_wildcard)
            || !again.is_empty();
        let reply = stream.due.take();
        if !changed && reply.is_none() {
            stream.settled = true;
            return None;
        }
        let first = !stream.opened;
        let error = reply.and_then(|reply| reply.error);
        // A server re-sends a name only when it was gone from the list in between.
        let mut names: Vec<Name> = self.wanted.difference(&again).cloned().collect();
        if self.wildcard && (stream.named_before || !names.is_empty()) {
            names.push("*".into());
        }
        let known = held(kind);
        let version = if first && !self.all_held(&known) {
            // An old version would let the server think that we have what we have not.
            String::new()
        } else {
            self.version.clone()
        };
        let nonce = self.stream.nonce.clone();
        self.told_now(now, &known);
        for name in &again {
            self.stream.told.remove(name);
            self.stream.pending.remove(name);
        }
        Some((kind, nonce, error, Body::Sotw { version, names }))
    }

    fn all_held(&self, known: &[(Name, Name)]) -> bool {
        let known: BTreeSet<&Name> = known.iter().map(|(name, _)| name).collect();
        self.wanted.iter().all(|name| known.contains(name))
    }

    /// The server has now been told of everything that is wanted.
    fn told_now(&mut self, now: Instant, known: &[(Name, Name)]) {
        let stream = &mut self.stream;
        let known: BTreeSet<&Name> = known.iter().map(|(name, _)| name).collect();
        for name in &self.wanted {
            let news = !stream.told.contains(name) || stream.forgotten.contains(name);
            if news && !known.contains(name) {
                stream
                    .pending
                    .insert(Arc::clone(name), now + NOT_THERE_AFTER);
            }
        }
        stream.opened = true;
        stream.told.clone_from(&self.wanted);
        stream.told_wildcard |= self.wildcard;
        stream.named_before |= !self.wanted.is_empty();
        stream.forgotten.clear();
    }
}
