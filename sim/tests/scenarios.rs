//! Facts about the scenarios that have a name, each at a small size with every invariant checked.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::time::Duration;

use shoal_sim::cli::Args;
use shoal_sim::{Fault, FaultKind, GroupReport, Named, Report, Value, run};

/// Plays a named scenario twice, checked: everyone who is not lost completes, and both runs are the same.
fn play(named: Named, nodes: u32) -> Report {
    play_with(named, nodes, &[])
}

fn play_with(named: Named, nodes: u32, settings: &[(&str, Value)]) -> Report {
    let mut args = Args { named, nodes: Some(nodes), blob_length: Some(24 << 20), seed: 7, ..Args::default() };
    args.check = true;
    settings.iter().for_each(|(key, value)| args.set(key, value.clone()).unwrap());
    let scenario = args.scenario().unwrap();
    let report = run(&scenario).unwrap();
    assert!(report.all_completed() && report.survivors_completed == 1.0, "{args}: {report:?}");
    assert_eq!(run(&scenario).unwrap(), report, "{args}");
    report
}

fn group<'a>(report: &'a Report, name: &str) -> &'a GroupReport {
    report.groups.iter().find(|group| group.name == name).unwrap()
}

#[test]
fn a_flash_crowd_completes_and_replays() {
    let report = play(Named::FlashCrowd, 20);
    assert!(report.ratio_last < 1.4 && report.duplicate_share < 0.01, "{report:?}");
}

#[test]
fn staggered_nodes_complete_and_replay() {
    play(Named::Staggered, 20);
}

#[test]
fn several_layers_complete_and_replay() {
    let report = play(Named::Layers, 12);
    assert!(report.origin_copies < 2.5, "{report:?}");
}

#[test]
fn the_first_of_a_crowd_are_as_quick_as_the_rest() {
    let args =
        Args { named: Named::Layers, nodes: Some(100), blob_length: Some(128 << 20), seed: 1, ..Args::default() };
    let report = run(&args.scenario().unwrap()).unwrap();
    assert!(report.ratio_last < report.ratio_median + 0.06, "{report:?}");
}

#[test]
fn an_agent_that_fetches_one_layer_at_a_time_completes() {
    play_with(Named::Layers, 12, &[("parallel", Value::Number(1))]);
}

#[test]
fn nodes_of_mixed_rates_complete_and_replay() {
    let report = play(Named::MixedRates, 18);
    assert_eq!(report.groups.iter().map(|group| group.nodes).collect::<Vec<_>>(), [6, 6, 6]);
}

#[test]
fn a_slow_origin_completes_and_replays() {
    let report = play(Named::SlowOrigin, 16);
    assert!(report.ratio_last < 1.15, "peers swap pieces while they come: {report:?}");
}

#[test]
fn zones_complete_and_replay() {
    let report = play_with(Named::Zones, 30, &[("blob", Value::Number(128 << 20))]);
    assert_eq!(report.copies_per_zone.len(), 3);
    // The origin is in the first: what it showed to leaders of others comes back.
    assert!(report.copies_per_zone[0] < 1.0, "{report:?}");
    assert!(report.copies_per_zone[1..].iter().all(|copies| (1.0..1.2).contains(copies)), "{report:?}");
}

#[test]
fn zones_outlive_their_leaders() {
    let args = Args { named: Named::Zones, nodes: Some(30), blob_length: Some(48 << 20), seed: 3, ..Args::default() };
    let mut scenario = args.scenario().unwrap();
    // The first of each zone to announce lead it.
    let crash = |node| Fault { at: Duration::from_millis(150), node, kind: FaultKind::Crash };
    scenario.faults = (1..=6).map(crash).collect();
    scenario.check_invariants = true;
    let report = run(&scenario).unwrap();
    assert!(report.crashed == 6 && report.survivors_completed == 1.0, "{report:?}");
}

#[test]
fn survivors_of_churn_complete_and_replay() {
    let report = play(Named::Churn, 40);
    assert!((1..=2).contains(&report.crashed), "{report:?}");
}

#[test]
fn late_joiners_complete_and_replay() {
    let report = play(Named::LateJoiners, 20);
    assert!(group(&report, "late").ratio_last < 1.2, "they find everyone a seeder: {report:?}");
}

#[test]
fn a_straggler_completes_and_replays() {
    let report = play(Named::Straggler, 16);
    assert!(group(&report, "straggler").seconds_last > group(&report, "others").seconds_median, "{report:?}");
}

#[test]
fn swarms_with_free_riders_complete_and_replay() {
    play(Named::FreeRiders, 20);
}

#[test]
fn swarms_with_free_riders_complete_under_tit_for_tat() {
    play_with(Named::FreeRiders, 12, &[("choke_policy", Value::Word("reciprocal".to_owned()))]);
}

#[test]
fn a_huge_crowds_small_sister_completes_and_replays() {
    play(Named::Huge, 60);
}

#[test]
fn krakens_case_completes_and_replays() {
    let report = play(Named::Kraken, 20);
    let times = report.percentiles;
    assert!(times.p50 <= times.p99 && times.p99 <= times.p999 && times.p999 <= times.max, "{report:?}");
}
