//! Which node fetches what, and how far each is: the rules of preheating, without IO.
//!
//! The controller begins and ends rounds and tells of the cluster's nodes; the service passes on what agents report. One round is
//! one time through the nodes that a `Preheat` selects. A node that is selected is in one of five standings, and the reports
//! of its agent move it on: it waits for its turn, fetches, and is complete, or has failed and waits again. An agent that is
//! silent gives its turn up.
//!
//! All of it may be lost at any time: agents that are given a task again find what they hold already.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use shoal_kube::{Change, NodeCounts, NodeLabels, NodeStatus, Platform};
use shoal_proto::preheat::v1 as proto;

/// How long an agent that is silent keeps its turn; it reports every [`INTERVAL`].
pub(crate) const SILENT_MAX: Duration = Duration::from_secs(60);
/// How long a node that could not rests before it is tried again; it doubles each time.
const REST_FIRST: Duration = Duration::from_secs(15);
/// The longest rest.
const REST_MAX: Duration = Duration::from_secs(600);
/// How often agents report that have nothing to do.
const INTERVAL: Duration = Duration::from_secs(15);
/// How often those report that fetch or wait for their turn, at best.
const INTERVAL_BUSY: Duration = Duration::from_secs(1);
/// How many of those report in a second, at most.
const BUSY_REPORTS_PER_S: u32 = 500;
/// Nodes told of one by one in a status.
pub(crate) const STATUSES_MAX: usize = 500;
/// The longest message of an agent that is kept, in bytes.
const MESSAGE_LENGTH_MAX: usize = 256;

/// What each platform fetches in a round.
pub(crate) type Tasks = BTreeMap<Platform, Arc<proto::Task>>;

/// The nodes of the cluster, and the rounds under way by their ids.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    nodes: BTreeMap<Arc<str>, NodeLabels>,
    rounds: BTreeMap<String, Round>,
}

/// What the controller knows when it begins a round.
#[derive(Debug, Clone)]
pub(crate) struct Begin {
    /// Labels of the nodes that take part.
    pub(crate) selector: BTreeMap<String, String>,
    /// How many fetch at a time.
    pub(crate) parallelism: usize,
    /// What they fetch.
    pub(crate) tasks: Tasks,
}

/// How far a round is.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Standings {
    pub(crate) counts: NodeCounts,
    /// Of the bytes that all nodes shall hold, what they hold.
    pub(crate) held_bytes: u64,
    pub(crate) wanted_bytes: u64,
    /// Each node, those with trouble first, up to [`STATUSES_MAX`].
    pub(crate) nodes: Vec<NodeStatus>,
    /// Whether every node that has an agent is complete. Agents have [`SILENT_MAX`] to be heard.
    pub(crate) is_over: bool,
}

#[derive(Debug)]
struct Round {
    begin: Begin,
    begun: Instant,
    fetching: usize,
    members: BTreeMap<Arc<str>, Member>,
}

#[derive(Debug)]
struct Member {
    platform: Platform,
    standing: Standing,
    held_bytes: u64,
    /// How often it has failed.
    failures: u32,
}

/// Where a node stands.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Standing {
    /// Its agent has not been heard since the round began, or for too long.
    Absent,
    /// It has been heard last at this time, and its turn has not come.
    Waiting(Instant),
    /// It has its turn, and has been heard last at this time.
    Fetching(Instant),
    /// It holds everything. Final.
    Complete,
    /// It could not; its turn may come again after this time.
    Failed { message: String, again: Instant },
}

impl Plan {
    /// Takes in what has become of the cluster's nodes. Those that a round selects take part in it.
    pub(crate) fn take_in(&mut self, change: Change<NodeLabels>) {
        match change {
            Change::All(nodes) => {
                self.nodes = nodes.into_iter().map(|node| (node.name.as_str().into(), node)).collect();
                let nodes = &self.nodes;
                self.rounds.values_mut().for_each(|round| round.select(nodes));
            }
            Change::Set(node) => {
                let name: Arc<str> = node.name.as_str().into();
                self.rounds.values_mut().for_each(|round| round.admit(&name, &node));
                self.nodes.insert(name, node);
            }
            Change::Gone(node) => {
                self.nodes.remove(node.name.as_str());
                self.rounds.values_mut().for_each(|round| round.remove(&node.name));
            }
        }
    }

    /// The platforms of the nodes that a selector selects.
    pub(crate) fn platforms(&self, selector: &BTreeMap<String, String>) -> Vec<Platform> {
        let selected = self.nodes.values().filter(|node| node.matches(selector));
        let mut platforms: Vec<_> = selected.map(NodeLabels::platform).collect();
        platforms.sort();
        platforms.dedup();
        platforms
    }

    /// Begins a round, or begins it anew.
    pub(crate) fn begin(&mut self, now: Instant, id: &str, begin: Begin) {
        let mut round = Round { begin, begun: now, fetching: 0, members: BTreeMap::new() };
        round.select(&self.nodes);
        self.rounds.insert(id.to_owned(), round);
    }

    /// Ends a round: agents forget it.
    pub(crate) fn end(&mut self, id: &str) {
        self.rounds.remove(id);
    }

    /// Ends all rounds: another tracker leads.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    /// The rounds under way, and the nodes known.
    pub(crate) fn sizes(&self) -> (usize, usize) {
        (self.rounds.len(), self.nodes.len())
    }

    /// Takes in what a node's agent reports; gives what it shall begin and forget, and when to report next.
    pub(crate) fn report(&mut self, now: Instant, node: &str, reported: &[proto::Progress]) -> proto::ReportResponse {
        let gone = reported.iter().filter(|progress| !self.rounds.contains_key(&progress.id));
        let gone = gone.map(|progress| progress.id.clone()).collect();
        let (mut tasks, mut interval) = (Vec::new(), INTERVAL);
        for (id, round) in &mut self.rounds {
            let members = round.members.len();
            let Some(task) = round.report(now, node, reported.iter().find(|progress| progress.id == *id)) else {
                continue;
            };
            let spread = Duration::from_secs(1) * number(members) / BUSY_REPORTS_PER_S;
            interval = interval.min(spread.max(INTERVAL_BUSY));
            tasks.extend(task.map(|task| proto::Task::clone(&task)));
        }
        let interval_ms = u32::try_from(interval.as_millis()).unwrap_or(u32::MAX);
        proto::ReportResponse { interval_ms, tasks, gone }
    }

    /// How far a round is; those that are silent for too long lose their turn first. `None` if there is no such round.
    pub(crate) fn standings(&mut self, now: Instant, id: &str) -> Option<Standings> {
        let round = self.rounds.get_mut(id)?;
        round.expire(now);
        Some(round.standings(now))
    }

    /// Whether a round is over, as its [`Standings`] say; so is one that there is not.
    pub(crate) fn is_over(&mut self, now: Instant, id: &str) -> bool {
        let Some(round) = self.rounds.get_mut(id) else { return true };
        round.expire(now);
        round.is_over(now, &round.counts())
    }
}

impl Round {
    fn select(&mut self, nodes: &BTreeMap<Arc<str>, NodeLabels>) {
        self.members.retain(|name, _| nodes.contains_key(name));
        self.fetching = self.members.values().filter(|member| matches!(member.standing, Standing::Fetching(_))).count();
        nodes.iter().for_each(|(name, node)| self.admit(name, node));
    }

    /// A node takes part while it has the labels; one whose platform the images are not made for fails at once.
    fn admit(&mut self, name: &Arc<str>, node: &NodeLabels) {
        if !node.matches(&self.begin.selector) {
            return self.remove(name);
        }
        let platform = node.platform();
        if self.members.get(name).is_none_or(|member| member.platform != platform) {
            self.remove(name);
            let member = Member { platform, standing: Standing::Absent, held_bytes: 0, failures: 0 };
            self.members.insert(Arc::clone(name), member);
        }
    }

    fn remove(&mut self, name: &str) {
        if let Some(Member { standing: Standing::Fetching(_), .. }) = self.members.remove(name) {
            self.fetching -= 1;
        }
    }

    /// Takes in a report. `None` if the node has nothing to do with this round or is done; else what it shall begin, if anything.
    fn report(
        &mut self,
        now: Instant,
        node: &str,
        reported: Option<&proto::Progress>,
    ) -> Option<Option<Arc<proto::Task>>> {
        let member = self.members.get_mut(node)?;
        let Some(task) = self.begin.tasks.get(&member.platform) else {
            let message = format!("the images have nothing for {}", member.platform);
            member.standing = Standing::Failed { message, again: now + REST_MAX };
            return None;
        };
        let had_turn = matches!(member.standing, Standing::Fetching(_));
        let reported = reported.filter(|progress| progress.revision == task.revision);
        if let Some(progress) = reported {
            member.held_bytes = progress.held_bytes.min(bytes(task));
        }
        let next = match (reported.map(proto::Progress::state), &member.standing) {
            (Some(proto::State::Complete), _) | (_, Standing::Complete) => Standing::Complete,
            (Some(proto::State::Fetching), _) => Standing::Fetching(now),
            (Some(proto::State::Failed), Standing::Fetching(_)) => {
                member.failures += 1;
                let rest = REST_FIRST.saturating_mul(1 << (member.failures - 1).min(10)).min(REST_MAX);
                let message = reported.map(|progress| cut(&progress.message)).unwrap_or_default();
                Standing::Failed { message, again: now + rest }
            }
            (_, Standing::Failed { message, again }) if *again > now => {
                Standing::Failed { message: message.clone(), again: *again }
            }
            // An agent that has its turn and does not speak of it has started anew.
            (_, Standing::Fetching(_)) => Standing::Waiting(now),
            (_, Standing::Absent | Standing::Waiting(_) | Standing::Failed { .. }) => Standing::Waiting(now),
        };
        self.fetching -= usize::from(had_turn);
        member.standing = next;
        let task = match member.standing {
            Standing::Waiting(_) if self.fetching < self.begin.parallelism => {
                member.standing = Standing::Fetching(now);
                Some(Arc::clone(task))
            }
            Standing::Waiting(_) | Standing::Fetching(_) | Standing::Failed { .. } | Standing::Absent => None,
            Standing::Complete => return None,
        };
        self.fetching += usize::from(matches!(member.standing, Standing::Fetching(_)));
        Some(task)
    }

    fn expire(&mut self, now: Instant) {
        for member in self.members.values_mut() {
            match member.standing {
                Standing::Fetching(heard) if heard + SILENT_MAX <= now => {
                    member.standing = Standing::Absent;
                    self.fetching -= 1;
                }
                Standing::Waiting(heard) if heard + SILENT_MAX <= now => member.standing = Standing::Absent,
                Standing::Fetching(_)
                | Standing::Waiting(_)
                | Standing::Absent
                | Standing::Complete
                | Standing::Failed { .. } => {}
            }
        }
    }

    fn standings(&self, now: Instant) -> Standings {
        let counts = self.counts();
        let wanted: BTreeMap<_, _> = self.begin.tasks.iter().map(|(platform, task)| (platform, bytes(task))).collect();
        let (mut held_bytes, mut wanted_bytes) = (0, 0);
        for member in self.members.values() {
            let wanted = wanted.get(&member.platform).copied().unwrap_or(0);
            wanted_bytes += wanted;
            let is_complete = member.standing == Standing::Complete;
            held_bytes += if is_complete { wanted } else { member.held_bytes };
        }
        let is_over = self.is_over(now, &counts);
        Standings { counts, held_bytes, wanted_bytes, nodes: self.statuses(), is_over }
    }

    fn is_over(&self, now: Instant, counts: &NodeCounts) -> bool {
        let others_are_silent = counts.absent == 0 || now >= self.begun + SILENT_MAX;
        counts.complete > 0 && counts.complete + counts.absent == counts.selected && others_are_silent
    }

    fn counts(&self) -> NodeCounts {
        let mut counts = NodeCounts { selected: number(self.members.len()), ..NodeCounts::default() };
        for member in self.members.values() {
            *match member.standing {
                Standing::Absent => &mut counts.absent,
                Standing::Waiting(_) => &mut counts.waiting,
                Standing::Fetching(_) => &mut counts.fetching,
                Standing::Complete => &mut counts.complete,
                Standing::Failed { .. } => &mut counts.failed,
            } += 1;
        }
        counts
    }

    fn statuses(&self) -> Vec<NodeStatus> {
        let mut members: Vec<_> = self.members.iter().collect();
        let urgency = |member: &Member| match member.standing {
            Standing::Failed { .. } => 0,
            Standing::Fetching(_) => 1,
            Standing::Waiting(_) => 2,
            Standing::Absent => 3,
            Standing::Complete => 4,
        };
        members.sort_by_key(|(_, member)| urgency(member));
        let status = |(name, member): (&Arc<str>, &Member)| {
            let (state, message) = match &member.standing {
                Standing::Failed { message, .. } => ("Failed", message.clone()),
                Standing::Fetching(_) => ("Fetching", String::new()),
                Standing::Waiting(_) => ("Waiting", String::new()),
                Standing::Absent => ("Absent", String::new()),
                Standing::Complete => ("Complete", String::new()),
            };
            NodeStatus { name: name.to_string(), state: state.to_owned(), held_bytes: member.held_bytes, message }
        };
        members.into_iter().take(STATUSES_MAX).map(status).collect()
    }
}

/// The bytes of a task's blobs.
pub(crate) fn bytes(task: &proto::Task) -> u64 {
    task.images.iter().flat_map(|image| &image.blobs).map(|blob| blob.length_bytes).fold(0, u64::saturating_add)
}

/// What is kept of an agent's message.
fn cut(message: &str) -> String {
    let end = (0..=MESSAGE_LENGTH_MAX.min(message.len())).rev().find(|end| message.is_char_boundary(*end));
    message[..end.unwrap_or(0)].to_owned()
}

fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "uid";

    fn node(name: &str, labels: &[(&str, &str)]) -> NodeLabels {
        let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        NodeLabels { name: name.to_owned(), labels }
    }

    fn platform(architecture: &str) -> Platform {
        Platform { os: "linux".into(), architecture: architecture.into() }
    }

    fn begin(parallelism: usize) -> Begin {
        let blobs = vec![proto::Blob { digest: String::new(), length_bytes: 100 }];
        let images = vec![proto::Image { blobs, ..proto::Image::default() }];
        let task = proto::Task { id: ID.to_owned(), revision: 7, images };
        let tasks = [(platform("amd64"), Arc::new(task))].into();
        Begin { selector: BTreeMap::new(), parallelism, tasks }
    }

    fn plan(names: &[&str], begin: Begin, now: Instant) -> Plan {
        let mut plan = Plan::default();
        plan.take_in(Change::All(names.iter().map(|name| node(name, &[])).collect()));
        plan.begin(now, ID, begin);
        plan
    }

    fn says(state: proto::State, held_bytes: u64) -> [proto::Progress; 1] {
        let message = "no room".repeat(100);
        [proto::Progress { id: ID.to_owned(), revision: 7, state: state.into(), held_bytes, message }]
    }

    /// One letter for each node: what it is about.
    fn picture(plan: &mut Plan, now: Instant) -> String {
        let mut nodes = plan.standings(now, ID).unwrap().nodes;
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        nodes.iter().map(|node| &node.state[..1]).collect()
    }

    #[test]
    fn as_many_fetch_at_a_time_as_may_and_who_is_done_makes_room() {
        use proto::State::{Complete, Fetching};
        let now = Instant::now();
        let mut plan = plan(&["a", "b", "c"], begin(2), now);
        assert_eq!(picture(&mut plan, now), "AAA");
        for (name, tasks, then) in [("a", 1, "FAA"), ("b", 1, "FFA"), ("c", 0, "FFW")] {
            assert_eq!(plan.report(now, name, &[]).tasks.len(), tasks);
            assert_eq!(picture(&mut plan, now), then);
        }
        assert!(plan.report(now, "a", &says(Fetching, 40)).tasks.is_empty());
        assert_eq!(plan.standings(now, ID).unwrap().held_bytes, 40);
        plan.report(now, "a", &says(Complete, 100));
        assert_eq!(plan.report(now, "c", &[]).tasks.len(), 1);
        assert_eq!(picture(&mut plan, now), "CFF");
        for name in ["b", "c"] {
            assert!(!plan.standings(now, ID).unwrap().is_over);
            plan.report(now, name, &says(Complete, 100));
        }
        let standings = plan.standings(now, ID).unwrap();
        assert!(standings.is_over);
        assert_eq!((standings.held_bytes, standings.wanted_bytes), (300, 300));
        plan.end(ID);
        assert_eq!(plan.report(now, "a", &says(Complete, 100)).gone, [ID]);
    }

    #[test]
    fn who_fails_makes_room_and_is_tried_again_later_and_later() {
        let mut now = Instant::now();
        let mut plan = plan(&["a"], begin(1), now);
        for rest in [15, 30, 60] {
            assert_eq!(plan.report(now, "a", &says(proto::State::Failed, 0)).tasks.len(), 1, "{rest}");
            plan.report(now, "a", &says(proto::State::Failed, 0));
            let failed = plan.standings(now, ID).unwrap().nodes.remove(0);
            assert_eq!((failed.state.as_str(), failed.message.len()), ("Failed", MESSAGE_LENGTH_MAX));
            now += Duration::from_secs(rest);
            assert!(plan.report(now - Duration::from_secs(1), "a", &says(proto::State::Failed, 0)).tasks.is_empty());
        }
    }

    #[test]
    fn who_is_silent_loses_its_turn_and_a_round_ends_without_it() {
        let start = Instant::now();
        let mut plan = plan(&["a", "b", "c"], begin(1), start);
        assert_eq!(plan.report(start, "a", &[]).tasks.len(), 1);
        let later = start + SILENT_MAX;
        assert_eq!(picture(&mut plan, later), "AAA");
        assert_eq!(plan.report(later, "b", &[]).tasks.len(), 1);
        plan.report(later, "b", &says(proto::State::Complete, 100));
        assert!(plan.standings(later, ID).unwrap().is_over, "nobody else is heard");
        assert_eq!(plan.report(later, "a", &[]).tasks.len(), 1);
        assert!(!plan.standings(later, ID).unwrap().is_over);
    }

    #[test]
    fn without_any_agent_a_round_is_not_over() {
        let start = Instant::now();
        assert!(!plan(&["a"], begin(1), start).standings(start + 2 * SILENT_MAX, ID).unwrap().is_over);
        assert!(!plan(&[], begin(1), start).standings(start + 2 * SILENT_MAX, ID).unwrap().is_over);
    }

    #[test]
    fn an_agent_that_has_started_anew_is_given_its_task_again() {
        let now = Instant::now();
        let mut plan = plan(&["a", "b"], begin(1), now);
        assert_eq!(plan.report(now, "a", &[]).tasks.len(), 1);
        assert_eq!(plan.report(now, "a", &[]).tasks.len(), 1);
        let mut other = says(proto::State::Complete, 100);
        other[0].revision = 6;
        assert_eq!(plan.report(now, "a", &other).tasks.len(), 1, "what it has done before may be something else");
        assert_eq!(picture(&mut plan, now), "FA");
    }

    #[test]
    fn nodes_take_part_while_they_have_the_labels_and_only_with_a_platform_that_there_is() {
        let now = Instant::now();
        let mut plan = plan(&["a"], begin(9), now);
        let selector = [("role".to_owned(), "web".to_owned())].into();
        plan.begin(now, ID, Begin { selector, ..begin(9) });
        assert_eq!(picture(&mut plan, now), "");
        plan.take_in(Change::Set(node("a", &[("role", "web")])));
        plan.take_in(Change::Set(node("b", &[("role", "web"), ("kubernetes.io/arch", "arm64")])));
        assert_eq!(plan.report(now, "a", &[]).tasks.len(), 1);
        assert!(plan.report(now, "b", &[]).tasks.is_empty());
        assert_eq!(picture(&mut plan, now), "FF");
        assert_eq!(plan.standings(now, ID).unwrap().nodes[0].message, "the images have nothing for linux/arm64");
        plan.take_in(Change::Set(node("a", &[("role", "db")])));
        plan.take_in(Change::Gone(node("b", &[])));
        assert_eq!(picture(&mut plan, now), "");
        assert!(plan.report(now, "a", &says(proto::State::Fetching, 0)).tasks.is_empty());
    }

    #[test]
    fn who_is_busy_reports_often_and_ten_thousand_of_them_not_too_often() {
        let now = Instant::now();
        let mut few = plan(&["a"], begin(1), now);
        assert_eq!(few.report(now, "other", &[]).interval_ms, 15_000);
        assert_eq!(few.report(now, "a", &[]).interval_ms, 1_000);
        let names: Vec<_> = (0..5_000).map(|n| format!("node-{n}")).collect();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        let mut many = plan(&names, begin(usize::MAX), now);
        assert_eq!(many.report(now, "node-7", &[]).interval_ms, 10_000);
        assert_eq!(many.standings(now, ID).unwrap().nodes.len(), STATUSES_MAX);
    }
}
