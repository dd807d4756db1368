//! Who waits, who goes on, and who is refused. Orders and counts; nothing is timed.

use rouse_node::engine::admission::queue::Limit;
use tokio::task::JoinHandle;

use super::*;

type Call = JoinHandle<Result<InvokeOutcome, Refusal>>;

fn call(bed: &Bed, name: &str, event: Value) -> Call {
    let (node, name) = (Arc::clone(&bed.node), name.to_owned());
    tokio::spawn(async move {
        let options = InvokeOptions::default();
        node.invoke(&target(&name), event.to_string().into(), &options)
            .await
    })
}

/// A call that runs until its mark is removed. Returns when it runs.
async fn occupy(bed: &Bed, name: &str, mark: &str) -> (Call, String) {
    let mark = bed.mark(mark);
    let call = call(bed, name, json!({ "do": "wait", "mark": mark }));
    exists(&mark).await;
    (call, mark)
}

async fn waiting(bed: &Bed, name: &str, count: usize) {
    while bed.description(name).serving.waiting != count {
        pause().await;
    }
}

async fn limit(bed: &Bed, name: &str) -> Limit {
    match bed
        .invoke_with(name, json!({}), InvokeOptions::default())
        .await
    {
        Err(Refusal::TooManyRequests(throttle)) => throttle.limit,
        other => panic!("{other:?}"),
    }
}

fn lines(path: &str) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_is_bounded_and_a_reservation_is_kept_free() {
    let bed = Bed::with(|config| {
        config.max_concurrency = 3;
        config.queue_max = 1;
        config.queue_wait_s = 3600;
    });
    bed.create("a", json!({})).await;
    bed.create(
        "r",
        json!({ "RouseServing": { "reserved_concurrency": 1 } }),
    )
    .await;
    let (first, first_mark) = occupy(&bed, "a", "1").await;
    let (second, second_mark) = occupy(&bed, "a", "2").await;
    // What is left belongs to the other function.
    let third = call(&bed, "a", json!({}));
    waiting(&bed, "a", 1).await;
    assert_eq!(limit(&bed, "a").await, Limit::Node);
    let (reserved, reserved_mark) = occupy(&bed, "r", "3").await;
    let more = call(&bed, "r", json!({}));
    waiting(&bed, "r", 1).await;
    assert_eq!(limit(&bed, "r").await, Limit::Function);
    for mark in [first_mark, second_mark, reserved_mark] {
        std::fs::remove_file(mark).unwrap();
    }
    for call in [first, second, third, reserved, more] {
        assert_eq!(call.await.unwrap().unwrap().function_error, None);
    }
    assert_eq!(bed.description("a").throttles, 1);
    assert_eq!(bed.description("a").serving.running, 0);
    // Nothing at all, and then no limit any more.
    let r = target("r");
    let of = |reserved| bed.node.set_reserved_concurrency(&r, reserved);
    of(Some(0)).await.unwrap();
    assert_eq!(limit(&bed, "r").await, Limit::Function);
    assert!(matches!(
        of(Some(3)).await,
        Err(Refusal::InvalidParameterValue(_))
    ));
    of(None).await.unwrap();
    assert_eq!(bed.invoke("r", json!({})).await.function_error, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_of_one_function_lets_another_in_between() {
    let bed = Bed::with(|config| {
        config.max_concurrency = 1;
        config.queue_wait_s = 3600;
    });
    bed.create("a", json!({})).await;
    bed.create("b", json!({})).await;
    let (running, mark) = occupy(&bed, "a", "mark").await;
    let order = bed.mark("order");
    let event = |name: &str| json!({ "do": "name", "mark": order, "name": name });
    let mut calls: Vec<Call> = (0..10).map(|_| call(&bed, "a", event("a"))).collect();
    waiting(&bed, "a", 10).await;
    calls.extend((0..2).map(|_| call(&bed, "b", event("b"))));
    waiting(&bed, "b", 2).await;
    std::fs::remove_file(mark).unwrap();
    running.await.unwrap().unwrap();
    for call in calls {
        call.await.unwrap().unwrap();
    }
    let order = lines(&order);
    assert_eq!(order.len(), 12);
    let last_of_b = order.iter().rposition(|name| name == "b").unwrap();
    assert!(last_of_b <= 5, "{order:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_whose_client_goes_away_does_not_run() {
    let bed = Bed::with(|config| {
        config.max_concurrency = 1;
        config.queue_wait_s = 3600;
    });
    bed.create("f", json!({})).await;
    let (running, mark) = occupy(&bed, "f", "mark").await;
    let seen = bed.mark("seen");
    let gone = call(
        &bed,
        "f",
        json!({ "do": "name", "mark": seen, "name": "gone" }),
    );
    waiting(&bed, "f", 1).await;
    gone.abort();
    waiting(&bed, "f", 0).await;
    std::fs::remove_file(mark).unwrap();
    running.await.unwrap().unwrap();
    bed.invoke("f", json!({ "do": "name", "mark": seen, "name": "next" }))
        .await;
    assert_eq!(lines(&seen), ["next"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_function_that_is_deleted_answers_those_who_wait() {
    let bed = Bed::with(|config| {
        config.max_concurrency = 1;
        config.queue_wait_s = 3600;
    });
    bed.create("a", json!({})).await;
    bed.create("b", json!({})).await;
    let (running, mark) = occupy(&bed, "a", "mark").await;
    let late = call(&bed, "b", json!({}));
    waiting(&bed, "b", 1).await;
    bed.node.delete_function(&target("b")).await.unwrap();
    std::fs::remove_file(mark).unwrap();
    running.await.unwrap().unwrap();
    assert!(matches!(
        late.await.unwrap(),
        Err(Refusal::ResourceNotFound(_))
    ));
    assert_eq!(bed.invoke("a", json!({})).await.function_error, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_are_started_a_few_at_a_time() {
    let bed = Bed::with(|config| {
        config.max_starts = 2;
        config.queue_wait_s = 3600;
    });
    bed.create("f", json!({})).await;
    // The right to start comes back when an instance has its event: all of these run at the same time.
    let mut calls = Vec::new();
    for index in 0..5 {
        calls.push(occupy(&bed, "f", &index.to_string()).await);
    }
    assert_eq!(bed.description("f").serving.running, 5);
    for (call, mark) in calls {
        std::fs::remove_file(mark).unwrap();
        call.await.unwrap().unwrap();
    }
}
