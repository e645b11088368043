//! Facts about whole swarms, by simulation.

use std::fmt;
use std::time::Duration;

use proptest::prelude::*;
use shoal_sim::cli::Args;
use shoal_sim::{Arrivals, Fault, FaultKind, Named, Rates, Report, Scenario, Value, run};

const MIB: u64 = 1 << 20;

/// 16 checked nodes at 100 Mbit/s, 32 MiB in 128 pieces.
fn small() -> Scenario {
    Scenario { check_invariants: true, ..Scenario::crowd(16, 32 * MIB, 12_500_000) }
}

fn play(scenario: &Scenario) -> Report {
    let report = run(scenario).expect("the scenario makes sense");
    assert!(report.all_completed(), "{report:?}");
    report
}

#[test]
fn sixteen_nodes_complete_near_the_optimum() {
    let report = play(&small());
    assert!(report.ratio_last < 1.25, "{report:?}");
    assert!(report.origin_copies < 2.0, "{report:?}");
    assert!(report.duplicate_share < 0.01, "{report:?}");
}

#[test]
fn one_node_alone_takes_the_blob_at_line_rate() {
    let report = play(&Scenario { check_invariants: true, ..Scenario::crowd(1, 32 * MIB, 12_500_000) });
    assert!(report.ratio_last < 1.02, "{report:?}");
}

#[test]
fn ten_gigabits_are_in_use_before_a_layer_is_over() {
    for nodes in [1, 8] {
        let report = play(&Scenario::crowd(nodes, 256 * MIB, 1_250_000_000));
        assert!(report.ratio_last < 2.0, "{report:?}");
    }
}

#[test]
fn the_same_seed_gives_the_same_trace_and_another_seed_another() {
    let first = play(&small());
    assert_eq!(play(&small()), first);
    let other = play(&Scenario { seed: 2, ..small() });
    assert_ne!(other.trace_hash, first.trace_hash);
}

#[test]
fn crashed_nodes_do_not_stop_the_others() {
    let mut scenario = small();
    scenario.add_random_faults(&[FaultKind::Crash], 0.25, Duration::from_secs(2));
    let report = play(&scenario);
    assert_eq!((report.crashed, report.completed), (4, 12));
}

#[test]
fn a_vanished_node_does_not_stop_the_others() {
    let mut scenario = small();
    scenario.add_random_faults(&[FaultKind::Vanish], 0.1, Duration::from_secs(2));
    assert_eq!(play(&scenario).completed, 14);
}

#[test]
fn the_origin_may_die_once_a_copy_is_out() {
    // A fast origin has shown every piece well before the agents have passed them all on.
    let fault = Fault { at: Duration::from_millis(2200), node: 0, kind: FaultKind::Crash };
    let scenario = Scenario { origin_rates: Rates::equal(50_000_000), faults: vec![fault], ..small() };
    let report = play(&scenario);
    assert!(report.seconds_last > 2.2 && report.origin_copies >= 1.0, "the origin died too late: {report:?}");
}

#[test]
fn nodes_that_lose_their_connections_recover() {
    let mut scenario = small();
    scenario.add_random_faults(&[FaultKind::CutConnections], 0.5, Duration::from_secs(2));
    play(&scenario);
}

#[test]
fn late_nodes_catch_up() {
    let mut scenario = small();
    scenario.groups[0].arrivals = Arrivals { within: Duration::from_secs(10), ..Arrivals::default() };
    play(&scenario);
}

#[test]
fn pieces_spread_while_the_origin_still_receives() {
    let report = play(&Scenario { upstream_rate: Some(6_250_000), ..small() });
    assert!(report.ratio_last < 1.15, "{report:?}");
}

#[test]
fn readers_cost_the_swarm_little() {
    let report = play(&Scenario { readers: true, ..small() });
    assert!(report.ratio_last < 1.35, "{report:?}");
}

#[test]
fn few_connections_are_enough() {
    let swarm = shoal_swarm::Config { connections_soft_max: 6, connections_max: 8, ..Default::default() };
    play(&Scenario { swarm, check_invariants: true, ..Scenario::crowd(40, 8 * MIB, 12_500_000) });
}

#[test]
#[should_panic(expected = "16 agents lack pieces that can be had")]
fn checked_mode_fails_a_run_that_does_not_complete() {
    play(&Scenario { time_limit: Some(Duration::from_secs(1)), ..small() });
}

#[test]
fn a_slow_node_does_not_slow_the_others() {
    let mut scenario = small();
    scenario.split("slow", 1).rates = Rates::equal(1_250_000);
    let report = play(&scenario);
    assert!(report.groups[0].ratio_median < 1.3, "{report:?}");
}

#[test]
fn a_node_so_slow_that_every_block_is_late_completes() {
    for seed in 1..=20 {
        let crowd = Scenario::crowd(5, 2 * MIB, 1_000_000);
        let mut scenario = Scenario { check_invariants: true, sockets_buffer: false, seed, ..crowd };
        scenario.split("slow", 1).rates = Rates::equal(100_000);
        play(&scenario);
    }
}

/// Arguments that a failing test prints as the command that replays it.
struct Replay(Args);

impl fmt::Debug for Replay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`", self.0)
    }
}

fn replays() -> impl Strategy<Value = Replay> {
    let named = prop::sample::select(&Named::ALL[..]);
    let piece_length = prop_oneof![Just(None), (16..21u32).prop_map(|n| Some(1 << n))];
    let swarm = (named, 1..14u32, 1..24 * MIB, any::<u64>(), piece_length);
    let network = (1_000_000..50_000_000u64, prop::option::of(1_000_000..90_000_000u64), 50..20_000u64);
    let course = (prop::option::of(500_000..20_000_000u64), prop::option::of(0..4000u64), any::<[bool; 2]>());
    let faults = (prop_oneof![Just(0.0), 0.0..0.5], prop_oneof![Just(0.0), 0.0..1.0], prop::option::of(0..4000u64));
    (swarm, network, course, faults).prop_map(|(swarm, network, course, faults)| {
        let ((named, nodes, blob_length, seed, piece_length), (rate, origin_rate, latency_us)) = (swarm, network);
        let ((upstream_rate, arrivals_ms, [readers, sockets_buffer]), (crash_share, cut_share, origin_crash_ms)) =
            (course, faults);
        let flag = |key: &str, on: bool| (key.to_owned(), Value::Word(on.to_string()));
        Replay(Args {
            named,
            nodes: Some(nodes),
            blob_length: Some(blob_length),
            piece_length,
            seed,
            rate: Some(rate),
            origin_rate,
            upstream_rate,
            latency: Some(Duration::from_micros(latency_us)),
            arrivals_ms,
            crash_share,
            cut_share,
            origin_crash_ms,
            settings: vec![flag("readers", readers), flag("sockets_buffer", sockets_buffer)],
            check: true,
            json: false,
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 200, ..ProptestConfig::default() })]

    /// Checked mode panics when an invariant is broken or a node that can complete does not.
    #[test]
    fn no_small_swarm_breaks_a_rule_or_gets_stuck(replay in replays()) {
        run(&replay.0.scenario().unwrap()).unwrap();
    }
}
