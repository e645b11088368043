//! Whom to serve: upload slots and the policies that hand them out.
//!
//! A slot is a grant of some bytes (one piece at least) that a peer may request. Slots bound how many peers are served at
//! once: the fewer, the sooner the first copies of a piece are whole somewhere and can be passed on.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::RngExt as _;
use rand_pcg::Pcg64;

use crate::dense::{ConnIndex, ConnSet};
use crate::{ChokePolicy, Time};

/// Whom the choker chooses from.
pub(crate) struct Peers<'a> {
    /// Those that would request something from us and have no slot.
    pub(crate) waiting: ConnSet,
    /// Those that are being served.
    pub(crate) serving: &'a ConnSet,
    /// Those in other zones: each fetches for all of its zone.
    pub(crate) far: &'a ConnSet,
    /// How one looks: asked of few, for their connections are cold in the cache.
    pub(crate) view: &'a dyn Fn(ConnIndex) -> View,
}

/// What the choker sees of one connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View {
    pub(crate) conn: ConnIndex,
    /// The peer would request something from us.
    pub(crate) interested: bool,
    /// Slots the peer takes: grants of which something is unused, requested or being sent.
    pub(crate) slots: u64,
    /// Bytes per second we get from the peer.
    pub(crate) rate_in: f64,
    /// Bytes per second the peer gets from us: what ranks peers while we have all we want (the seeds' "seed" case).
    pub(crate) rate_out: f64,
}

/// What to tell a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// It gets this many more slots.
    Grant(ConnIndex, u64),
    /// What is left of its allowance is void.
    Choke(ConnIndex),
}

/// A policy and its state.
#[derive(Debug)]
pub(crate) enum Choker {
    /// A free slot goes at once to a random one of the interested peers with the least outstanding, far ones first: what
    /// crosses serves a zone. Turns (the one served least recently) and serving those behind first were tried: both make
    /// neighbours serve the same peer at the same time.
    Cluster { slots: u64 },
    /// Tit-for-tat rounds (Cohen 2003): the seeds' policy.
    Reciprocal(Reciprocal),
}

#[derive(Debug)]
pub(crate) struct Reciprocal {
    slots: usize,
    unchoked: Vec<ConnIndex>,
    optimistic: Option<ConnIndex>,
    next_round: Time,
    next_optimistic: Time,
}

/// How often tit-for-tat ranks its peers.
const ROUND: Duration = Duration::from_secs(10);
/// How often it tries a random peer.
const OPTIMISTIC: Duration = Duration::from_secs(30);
/// Grants an unchoked peer holds ahead under tit-for-tat, where a choke ends them and not their size.
const RECIPROCAL_GRANTS: u64 = 4;

impl Choker {
    pub(crate) fn new(policy: ChokePolicy, slots: u32) -> Self {
        match policy {
            ChokePolicy::Cluster => Self::Cluster { slots: u64::from(slots.max(1)) },
            ChokePolicy::Reciprocal => Self::Reciprocal(Reciprocal {
                slots: slots.max(1) as usize,
                unchoked: Vec::new(),
                optimistic: None,
                next_round: Time::ZERO,
                next_optimistic: Time::ZERO,
            }),
        }
    }

    /// Tells whether there is anything to decide when so many slots are taken, and so many more may be.
    pub(crate) fn has_free(&self, used: u64, more: u64) -> bool {
        match self {
            Self::Cluster { slots } => used < *slots + more,
            Self::Reciprocal(_) => true,
        }
    }

    /// Decides after something changed: interest, what is outstanding, or the time. Pass how many slots are taken, and how many
    /// more than usual may be.
    pub(crate) fn decide(
        &mut self,
        now: Time,
        used: u64,
        more: u64,
        peers: Peers<'_>,
        rng: &mut Pcg64,
    ) -> Vec<Decision> {
        match self {
            Self::Cluster { slots } => cluster((*slots + more).saturating_sub(used), peers, rng),
            Self::Reciprocal(state) => {
                let both = peers.waiting.iter().chain(peers.serving.iter());
                state.decide(now, &both.map(peers.view).collect::<Vec<_>>(), rng)
            }
        }
    }

    /// A connection is gone.
    pub(crate) fn forget(&mut self, conn: ConnIndex) {
        if let Self::Reciprocal(state) = self {
            state.unchoked.retain(|unchoked| *unchoked != conn);
            state.optimistic = state.optimistic.filter(|optimistic| *optimistic != conn);
        }
    }

    /// When to decide again although nothing changed.
    pub(crate) fn timeout(&self) -> Option<Time> {
        match self {
            Self::Cluster { .. } => None,
            Self::Reciprocal(state) => Some(state.next_round.min(state.next_optimistic)),
        }
    }
}

fn cluster(free: u64, mut peers: Peers<'_>, rng: &mut Pcg64) -> Vec<Decision> {
    let free = usize::try_from(free).unwrap_or(usize::MAX);
    let mut granted = Vec::new();
    while granted.len() < free
        && let Some(conn) = peers.waiting.draw(peers.far, rng)
    {
        granted.push(conn);
    }
    if granted.len() < free {
        let mut by_slots = BTreeMap::from([(1, granted.iter().copied().collect::<ConnSet>())]);
        for view in peers.serving.iter().map(peers.view).filter(|view| view.interested) {
            by_slots.entry(view.slots).or_default().insert(view.conn);
        }
        while granted.len() < free
            && let Some((slots, mut least)) = by_slots.pop_first()
        {
            if let Some(conn) = least.draw(peers.far, rng) {
                granted.push(conn);
                by_slots.insert(slots, least);
                by_slots.entry(slots + 1).or_default().insert(conn);
            }
        }
    }
    granted.into_iter().map(|conn| Decision::Grant(conn, 1)).collect()
}

impl Reciprocal {
    fn decide(&mut self, now: Time, views: &[View], rng: &mut Pcg64) -> Vec<Decision> {
        let mut out = Vec::new();
        let interested = |conn: ConnIndex| views.iter().any(|view| view.conn == conn && view.interested);
        if now >= self.next_optimistic || self.optimistic.is_none_or(|conn| !interested(conn)) {
            let choked: Vec<_> =
                views.iter().filter(|view| view.interested && !self.unchoked.contains(&view.conn)).collect();
            let chosen = (!choked.is_empty()).then(|| choked[rng.random_range(0..choked.len())].conn);
            // Also when there is nobody to choose: the time has come and gone.
            if chosen.is_some() || now >= self.next_optimistic {
                self.next_optimistic = now + OPTIMISTIC;
            }
            self.replace(&mut out, |state| state.optimistic = chosen);
        }
        let free = self.unchoked.iter().filter(|&&conn| interested(conn)).count() < self.slots;
        if now >= self.next_round || free {
            if now >= self.next_round {
                self.next_round = now + ROUND;
            }
            let mut ranked: Vec<_> = views.iter().filter(|view| view.interested).collect();
            ranked.sort_by(|a, b| {
                b.rate_in.total_cmp(&a.rate_in).then(b.rate_out.total_cmp(&a.rate_out)).then(a.conn.cmp(&b.conn))
            });
            let best = ranked.iter().take(self.slots).map(|view| view.conn).collect();
            self.replace(&mut out, |state| state.unchoked = best);
        }
        for view in views.iter().filter(|view| view.interested && self.serves(view.conn)) {
            if view.slots <= RECIPROCAL_GRANTS / 2 {
                out.push(Decision::Grant(view.conn, RECIPROCAL_GRANTS - view.slots));
            }
        }
        out
    }

    fn serves(&self, conn: ConnIndex) -> bool {
        self.unchoked.contains(&conn) || self.optimistic == Some(conn)
    }

    fn replace(&mut self, out: &mut Vec<Decision>, change: impl FnOnce(&mut Self)) {
        let before: Vec<_> = self.unchoked.iter().copied().chain(self.optimistic).collect();
        change(self);
        out.extend(before.into_iter().filter(|&conn| !self.serves(conn)).map(Decision::Choke));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng as _;

    /// Peers drawn by name: upper case is interested; each outstanding grant is a `+`.
    fn peers(picture: &str) -> Vec<View> {
        let mut out: Vec<View> = Vec::new();
        for c in picture.bytes().filter(|c| *c != b' ') {
            if c == b'+' {
                out.last_mut().unwrap().slots += 1;
                continue;
            }
            out.push(View {
                conn: ConnIndex::new(usize::from(c.to_ascii_lowercase())).unwrap(),
                interested: c.is_ascii_uppercase(),
                slots: 0,
                rate_in: 0.0,
                rate_out: 0.0,
            });
        }
        out
    }

    fn granted(decisions: &[Decision]) -> String {
        let name = |conn: &ConnIndex| char::from(u8::try_from(conn.index()).unwrap());
        let mut names: Vec<char> = decisions
            .iter()
            .map(|decision| match decision {
                Decision::Grant(conn, _) => name(conn),
                Decision::Choke(conn) => name(conn).to_ascii_uppercase(),
            })
            .collect();
        names.sort_unstable();
        names.into_iter().collect()
    }

    /// The choker's decisions when these peers are there, those of them that are in `far` too in another zone.
    fn decide_far(choker: &mut Choker, now: Time, views: &[View], far: &str, rng: &mut Pcg64) -> Vec<Decision> {
        let used = views.iter().map(|view| view.slots).sum();
        let waiting = views.iter().filter(|view| view.interested && view.slots == 0);
        let peers = Peers {
            waiting: waiting.map(|view| view.conn).collect(),
            serving: &views.iter().filter(|view| view.slots > 0).map(|view| view.conn).collect(),
            far: &peers(far).iter().map(|view| view.conn).collect(),
            view: &|conn| *views.iter().find(|view| view.conn == conn).unwrap(),
        };
        choker.decide(now, used, 0, peers, rng)
    }

    fn decide(choker: &mut Choker, now: Time, views: &[View], rng: &mut Pcg64) -> Vec<Decision> {
        decide_far(choker, now, views, "", rng)
    }

    fn at(seconds: u64) -> Time {
        Time::ZERO + Duration::from_secs(seconds)
    }

    #[test]
    fn a_free_slot_goes_to_an_interested_peer_without_one() {
        let mut choker = Choker::new(ChokePolicy::Cluster, 2);
        let mut rng = Pcg64::seed_from_u64(1);
        assert_eq!(granted(&decide(&mut choker, at(0), &peers("A+ b C"), &mut rng)), "c");
        assert_eq!(granted(&decide(&mut choker, at(0), &peers("A+ B+ C"), &mut rng)), "");
        assert_eq!(granted(&decide(&mut choker, at(0), &peers("a b"), &mut rng)), "");
    }

    #[test]
    fn a_lone_peer_gets_every_slot() {
        let mut choker = Choker::new(ChokePolicy::Cluster, 4);
        let decisions = decide(&mut choker, at(0), &peers("A b c"), &mut Pcg64::seed_from_u64(1));
        assert_eq!(granted(&decisions), "aaaa");
    }

    #[test]
    fn peers_with_equally_little_are_served_at_random() {
        let mut choker = Choker::new(ChokePolicy::Cluster, 2);
        let mut rng = Pcg64::seed_from_u64(1);
        let mut served = |peers: &[View]| granted(&decide(&mut choker, at(0), peers, &mut rng));
        let seen: std::collections::BTreeSet<_> = (0..100).map(|_| served(&peers("A+ B C D"))).collect();
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), ["b", "c", "d"]);
    }

    #[test]
    fn who_crosses_for_a_zone_comes_first_among_equals() {
        let mut choker = Choker::new(ChokePolicy::Cluster, 3);
        let mut rng = Pcg64::seed_from_u64(1);
        for _ in 0..20 {
            let decisions = decide_far(&mut choker, at(0), &peers("A+ B C D+"), "A C", &mut rng);
            assert_eq!(granted(&decisions), "c");
        }
    }

    #[test]
    fn when_nobody_waits_those_with_least_get_more() {
        let mut choker = Choker::new(ChokePolicy::Cluster, 7);
        let decisions = decide(&mut choker, at(0), &peers("A++ B+ C d+"), &mut Pcg64::seed_from_u64(1));
        assert_eq!(granted(&decisions), "bcc");
    }

    #[test]
    fn tit_for_tat_serves_the_best_givers_and_one_optimist() {
        let mut choker = Choker::new(ChokePolicy::Reciprocal, 4);
        let mut rng = Pcg64::seed_from_u64(1);
        let mut views = peers("A B C D E F");
        for (rate, view) in [15.0, 12.0, 10.0, 9.0, 8.0, 3.0].into_iter().zip(&mut views) {
            view.rate_in = rate;
        }
        let first = granted(&decide(&mut choker, at(0), &views, &mut rng));
        assert!(first.starts_with("abcd") && first.len() <= 5, "{first}");
        views[4].rate_in = 20.0;
        let same_round = granted(&decide(&mut choker, at(5), &views, &mut rng));
        assert!(!same_round.contains('D'), "a round lasts 10 s: {same_round}");
        let next_round = granted(&decide(&mut choker, at(10), &views, &mut rng));
        assert!(next_round.contains('e'), "{next_round}");
    }

    #[test]
    fn a_round_without_an_optimist_is_over_too() {
        let mut choker = Choker::new(ChokePolicy::Reciprocal, 4);
        let mut rng = Pcg64::seed_from_u64(1);
        for round in 0..8 {
            let now = at(round * 10);
            decide(&mut choker, now, &peers("A b"), &mut rng);
            assert!(choker.timeout().is_some_and(|next| next > now), "due again at once after {now:?}");
        }
    }

    #[test]
    fn every_peer_is_unchoked_optimistically_in_time() {
        let mut choker = Choker::new(ChokePolicy::Reciprocal, 1);
        let mut rng = Pcg64::seed_from_u64(7);
        let mut views = peers("A B C D");
        views[0].rate_in = 9.0;
        let mut seen = String::new();
        for round in 0..60 {
            seen += &granted(&decide(&mut choker, at(round * 10), &views, &mut rng));
        }
        assert!("abcd".chars().all(|peer| seen.contains(peer)), "{seen}");
    }
}
