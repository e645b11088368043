//! Facts about swarms in which much goes wrong at random. A failure names the schedule and the command that replays it.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use shoal_sim::Bug;
use shoal_sim::faults::{Broken, play};

/// Plays a quarter of 2,400 schedules; in four tests, for as many cores.
fn play_quarter(quarter: u64) {
    for seed in (1..=2400).filter(|seed| seed % 4 == quarter) {
        if let Err(broken) = play(seed, None) {
            panic!("{broken}");
        }
    }
}

#[test]
fn no_schedule_of_the_first_quarter_breaks_a_rule() {
    play_quarter(0);
}

#[test]
fn no_schedule_of_the_second_quarter_breaks_a_rule() {
    play_quarter(1);
}

#[test]
fn no_schedule_of_the_third_quarter_breaks_a_rule() {
    play_quarter(2);
}

#[test]
fn no_schedule_of_the_fourth_quarter_breaks_a_rule() {
    play_quarter(3);
}

/// The first of a hundred schedules that a bug breaks.
fn found(bug: Bug) -> Broken {
    (1..=100).find_map(|seed| play(seed, Some(bug)).err()).unwrap()
}

#[test]
fn a_store_that_verifies_nothing_is_found() {
    let broken = found(Bug::SkipVerification);
    assert!(broken.what.contains("wrong bytes"), "{broken}");
}

#[test]
fn haves_that_get_lost_are_found() {
    let broken = found(Bug::LoseHave);
    assert!(broken.what.contains("has not heard"), "{broken}");
}

#[test]
fn a_blob_that_is_committed_twice_is_found() {
    let broken = found(Bug::CommitTwice);
    assert!(broken.what.contains("twice"), "{broken}");
    let replay = format!("replay: shoal sim faults --seed {}", broken.seed);
    assert!(broken.to_string().ends_with(&replay), "{broken}");
}

#[test]
fn a_schedule_replays_event_by_event() {
    let traces = |_| (1..=40).map(|seed| play(seed, None).unwrap().trace_hash).collect::<Vec<_>>();
    let [first, second] = [0, 1].map(traces);
    assert_eq!(first, second);
    let distinct: std::collections::BTreeSet<_> = first.iter().collect();
    assert_eq!(distinct.len(), first.len());
}
