//! Pulls while the agent's disk is full, read-only, gone, not its own, or rotten: right bytes, whatever the disk does.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use rustix::mount::MountFlags;
use shoal_agent::Running;
use shoal_kit::ByteSize;
use shoal_registry::embedded::Options;

use crate::mount::Mount;
use crate::rig::{Rig, blob, eventually, fetch, first_bytes, get};

/// Pulls every layer twice.
async fn assert_pulls(rig: &Rig, agent: &Running) {
    for layer in rig.image.layers.iter().chain(&rig.image.layers) {
        let answer = get(agent, &blob(layer)).await;
        assert_eq!((answer.status.as_u16(), answer.whole, answer.digest()), (200, true, *layer));
    }
}

/// What the agent says of its store: in its status, and as a metric.
async fn assert_state(agent: &Running, state: &str) {
    let status = agent.status();
    assert_eq!((status.store_state, status.store_trouble.is_none()), (state, state == "well"));
    let metrics = fetch(&format!("http://{}/metrics", agent.admin_addr())).await;
    let states = metrics.lines().filter(|line| line.starts_with("shoal_agent_store_state") && line.ends_with(" 1"));
    assert_eq!(states.collect::<Vec<_>>(), [format!("shoal_agent_store_state{{state=\"{state}\"}} 1")]);
    assert!(metrics.contains("shoal_agent_corrupt_blobs_total "), "there from the start");
}

fn fill(directory: &Path) {
    fs::write(directory.join("ballast"), vec![1; 32 << 20]).unwrap_err();
}

#[tokio::test]
async fn a_read_only_disk_lets_everything_pass_and_is_used_when_it_can_be_written() {
    let (rig, directory) = (Rig::start(Options::default()).await, tempfile::tempdir().unwrap());
    let Some(mount) = Mount::tmpfs(directory.path(), c"size=32m", MountFlags::RDONLY) else { return };
    let agent = rig.agent(|config| config.store = directory.path().to_owned()).await;
    assert_pulls(&rig, &agent).await;
    assert_state(&agent, "closed").await;
    mount.remount(MountFlags::empty());
    eventually("the store is open", || agent.status().store_state == "well").await;
    assert_pulls(&rig, &agent).await;
    eventually("the layers are kept", || agent.status().blobs == 2).await;

    rig.stop_agents();
    agent.stopped().await;
    mount.remount(MountFlags::RDONLY);
    let before = rig.sent(&rig.image.layers[0]);
    let agent = rig.agent(|config| config.store = directory.path().to_owned()).await;
    assert_pulls(&rig, &agent).await;
    assert_eq!(rig.sent(&rig.image.layers[0]), before, "what is held is served");
    assert_eq!(get(&agent, &blob(&rig.image.config)).await.digest(), rig.image.config);
    assert_state(&agent, "read_only").await;
}

#[tokio::test]
async fn a_full_disk_lets_everything_pass_until_there_is_room() {
    let (rig, directory) = (Rig::start(Options::default()).await, tempfile::tempdir().unwrap());
    let Some(_mount) = Mount::tmpfs(directory.path(), c"size=16m", MountFlags::empty()) else { return };
    let agent = rig.agent(|config| config.store = directory.path().to_owned()).await;
    fill(directory.path());
    assert_pulls(&rig, &agent).await;
    assert_state(&agent, "full").await;
    assert_eq!(agent.status().blobs, 0);
    fs::remove_file(directory.path().join("ballast")).unwrap();
    assert_pulls(&rig, &agent).await;
    eventually("the layers are kept", || agent.status().blobs == 2).await;
    assert_state(&agent, "well").await;
}

#[tokio::test]
async fn a_disk_that_fills_up_in_mid_pull_does_not_cut_it() {
    let rig = Rig::with_layers(Options { rate: Some(6 << 20), ..Options::default() }, &[12 << 20]).await;
    let directory = tempfile::tempdir().unwrap();
    let Some(_mount) = Mount::tmpfs(directory.path(), c"size=24m", MountFlags::empty()) else { return };
    let agent = rig.agent(|config| config.store = directory.path().to_owned()).await;
    let layer = blob(&rig.image.layers[0]);
    let filled = async {
        first_bytes(&agent, &layer).await;
        fill(directory.path());
    };
    let (answer, ()) = tokio::join!(get(&agent, &layer), filled);
    assert_eq!((answer.whole, answer.digest()), (true, rig.image.layers[0]));
    assert_state(&agent, "full").await;
}

#[tokio::test]
async fn a_store_of_a_newer_version_or_somebody_elses_directory_lets_everything_pass() {
    let rig = Rig::start(Options::default()).await;
    for (file, content, why) in
        [("version", "2\n", "layout version 2"), ("blobs/README", "mine", "not a store of ours")]
    {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir_all(directory.path().join(file).parent().unwrap()).unwrap();
        fs::write(directory.path().join(file), content).unwrap();
        let agent = rig.agent(|config| config.store = directory.path().to_owned()).await;
        assert_pulls(&rig, &agent).await;
        assert_state(&agent, "closed").await;
        assert!(agent.status().store_trouble.unwrap().contains(why));
        assert_eq!(fs::read_to_string(directory.path().join(file)).unwrap(), content, "it is left alone");
    }
}

#[tokio::test]
async fn a_store_removed_under_the_agent_costs_what_was_in_it() {
    let rig = Rig::start(Options::default()).await;
    let agent = rig.agent(|_| {}).await;
    assert_pulls(&rig, &agent).await;
    eventually("the layers are kept", || agent.status().blobs == 2).await;
    fs::remove_dir_all(agent.status().store).unwrap();
    assert_pulls(&rig, &agent).await;
    assert_eq!(get(&agent, &blob(&rig.image.config)).await.digest(), rig.image.config);
    eventually("what is pulled is kept again", || agent.status().blobs > 0).await;
    assert_state(&agent, "well").await;
}

#[tokio::test]
async fn a_rotten_blob_is_neither_served_nor_kept_and_the_pull_succeeds() {
    let (rig, directory) = (Rig::start(Options::default()).await, tempfile::tempdir().unwrap());
    let small = |config: &mut shoal_agent::Config| {
        config.store = directory.path().to_owned();
        config.free_floor = ByteSize::bytes(0);
    };
    let agent = rig.agent(small).await;
    assert_pulls(&rig, &agent).await;
    eventually("the layers are kept", || agent.status().blobs == 2).await;
    rig.stop_agents();
    agent.stopped().await;
    let layer = rig.image.layers[0];
    let hex = layer.hex();
    let data = directory.path().join("blobs/sha256").join(&hex[..2]).join(hex).join("data");
    let at = 2_500_000;
    let rotten = fs::File::options().write(true).open(&data).unwrap();
    rotten.write_all_at(&[rig.content(&layer)[at as usize] ^ 1], at).unwrap();

    let (agent, before) = (rig.agent(small).await, rig.sent(&layer).1);
    let answer = get(&agent, &blob(&layer)).await;
    assert_eq!((answer.whole, answer.digest()), (true, layer));
    let fetched = rig.sent(&layer).1 - before;
    assert!(fetched < 1_500_000, "{fetched} bytes for what follows the rotten piece");
    assert_eq!((agent.status().corrupt_blobs, agent.status().blobs), (1, 1));
    assert_pulls(&rig, &agent).await;
    eventually("it is fetched anew and kept", || agent.status().blobs == 2).await;
    assert_eq!(agent.status().corrupt_blobs, 1);
    let metrics = fetch(&format!("http://{}/metrics", agent.admin_addr())).await;
    assert!(metrics.contains("shoal_agent_corrupt_blobs_total 1\n"), "{metrics}");
}
