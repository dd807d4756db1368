//! What outlives a restart of the node.

use std::fs;

use super::*;

async fn lines(mark: &str, count: usize) -> Vec<String> {
    loop {
        let text = fs::read_to_string(mark).unwrap_or_default();
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        if lines.len() >= count {
            return lines;
        }
        pause().await;
    }
}

async fn event(bed: &Bed, event: Value) -> String {
    bed.node
        .invoke_event(&target("f"), Bytes::from(event.to_string()), None)
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_is_tried_three_times() {
    let bed = Bed::start();
    bed.create("f", json!({})).await;
    let (twice, never) = (bed.mark("twice"), bed.mark("never"));
    let id = event(
        &bed,
        json!({ "do": "append", "mark": twice, "failures": 2 }),
    )
    .await;
    assert_eq!(lines(&twice, 3).await, [id.clone(), id.clone(), id]);
    event(
        &bed,
        json!({ "do": "append", "mark": never, "failures": 100 }),
    )
    .await;
    assert_eq!(lines(&never, 3).await.len(), 3);
    while bed.description("f").invocations < 6 {
        pause().await;
    }
    bed.quiet("f").await;
    // Both are done: a restart does not deliver them again.
    let bed = bed.restart().await;
    let last = bed.mark("last");
    event(&bed, json!({ "do": "append", "mark": last, "failures": 0 })).await;
    lines(&last, 1).await;
    assert_eq!(
        (lines(&twice, 0).await.len(), lines(&never, 0).await.len()),
        (3, 3)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_survives_a_restart() {
    let bed = Bed::with(|config| config.async_retry_s = vec![3600]);
    bed.create("f", json!({})).await;
    let mark = bed.mark("mark");
    let id = event(&bed, json!({ "do": "append", "mark": mark, "failures": 1 })).await;
    lines(&mark, 1).await;
    bed.quiet("f").await;
    // The second attempt would come in an hour; the restart makes it at once.
    let bed = bed.restart().await;
    assert_eq!(lines(&mark, 2).await, [id.clone(), id]);
    bed.quiet("f").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshots_are_found_again_and_damaged_ones_taken_again() {
    let bed = Bed::start();
    bed.create("f", json!({})).await;
    let taken = bed.description("f").snapshot.taken_at;
    let bed = bed.restart().await;
    let ready = async |bed: &Bed| {
        while bed.description("f").snapshot.state != "ready" {
            pause().await;
        }
    };
    ready(&bed).await;
    assert_eq!(bed.description("f").snapshot.taken_at, taken);
    assert_eq!(bed.invoke("f", json!({})).await.path, BootPath::Fork);
    bed.quiet("f").await;

    let revision = bed.description("f").record.revision_id.clone();
    let manifest = bed
        .dir
        .path()
        .join("state/snapshots/f")
        .join(&revision)
        .join("manifest");
    fs::write(&manifest, "goop").unwrap();
    let bed = bed.restart().await;
    // Served cold at once, whatever the snapshot's state.
    assert_eq!(answer(&bed.invoke("f", json!({})).await)["count"], 1);
    ready(&bed).await;
    let snapshot = bed.description("f").snapshot;
    assert_eq!(
        snapshot.reason.as_deref(),
        Some("The snapshot found at the start could not be used: section 1: bad checksum")
    );
    // The next version of the same revision; the damaged one is gone.
    let second = manifest
        .parent()
        .unwrap()
        .with_file_name(format!("{revision}-2"));
    assert_eq!(fs::read(second.join("manifest")).unwrap(), b"good");
    assert!(!manifest.exists());
    bed.node.delete_function(&target("f")).await.unwrap();
    assert_eq!(
        fs::read_dir(bed.dir.path().join("state/snapshots"))
            .unwrap()
            .count(),
        0
    );
}
