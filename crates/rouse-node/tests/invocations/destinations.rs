//! Who is told how asynchronous invocations end.

use std::fs;

use rouse_node::function::request::EventInvokeConfig;

use super::*;

const FUNCTION: &str = "arn:aws:lambda:us-east-1:000000000000:function:told";
const QUEUE: &str = "arn:aws:sqs:us-east-1:000000000000:letters";

async fn decide(bed: &Bed, name: &str, config: Value) {
    let config: EventInvokeConfig = serde_json::from_value(config).unwrap();
    bed.node
        .put_event_policy(&target(name), config, false)
        .await
        .unwrap();
}

async fn send(bed: &Bed, event: &Value) -> String {
    bed.node
        .invoke_event(&target("f"), event.to_string().into(), None)
        .await
        .unwrap()
}

/// Messages of the queue, once there are so many.
async fn messages(bed: &Bed, count: usize) -> Vec<Value> {
    let directory = bed.dir.path().join("state/queues/letters");
    loop {
        let mut found: Vec<_> = fs::read_dir(&directory)
            .into_iter()
            .flatten()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|e| e == "json"))
            .collect();
        if found.len() >= count {
            found.sort();
            let read = |path: &std::path::PathBuf| {
                serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
            };
            return found.iter().map(read).collect();
        }
        pause().await;
    }
}

async fn done(bed: &Bed) {
    while bed.node.pending_events() > 0 {
        pause().await;
    }
}

/// What a function was given, from the file to which it writes its events.
async fn told(bed: &Bed, count: usize) -> Vec<Value> {
    loop {
        let text = fs::read_to_string(bed.mark("told")).unwrap_or_default();
        if text.lines().count() >= count {
            let parse = |line| serde_json::from_str(line).unwrap();
            return text.lines().map(parse).collect();
        }
        pause().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn success_and_failure_are_told_as_lambda_tells_them() {
    let bed = Bed::start();
    bed.create("f", json!({ "DeadLetterConfig": { "TargetArn": QUEUE } }))
        .await;
    let environment = json!({ "Variables": { "TELL": bed.mark("told") } });
    bed.create("told", json!({ "Environment": environment }))
        .await;
    let destinations =
        json!({ "OnSuccess": { "Destination": FUNCTION }, "OnFailure": { "Destination": QUEUE } });
    decide(
        &bed,
        "f",
        json!({ "MaximumRetryAttempts": 1, "DestinationConfig": destinations }),
    )
    .await;

    let id = send(&bed, &json!({ "n": 1 })).await;
    let record = told(&bed, 1).await.remove(0);
    assert_eq!(
        (
            &record["version"],
            &record["requestPayload"],
            &record["responsePayload"]["count"]
        ),
        (&json!("1.0"), &json!({ "n": 1 }), &json!(1))
    );
    assert_eq!(
        record["requestContext"],
        json!({
            "requestId": id, "condition": "Success", "approximateInvokeCount": 1,
            "functionArn": "arn:aws:lambda:us-east-1:000000000000:function:f:$LATEST",
        })
    );
    assert_eq!(
        record["responseContext"],
        json!({ "statusCode": 200, "executedVersion": "$LATEST" })
    );

    let failing = json!({ "do": "raise" });
    let id = send(&bed, &failing).await;
    done(&bed).await;
    // The dead letter and the record.
    let all = messages(&bed, 2).await;
    assert_eq!(all.len(), 2, "{all:?}");
    let letter = all
        .iter()
        .find(|one| one.get("MessageBody").is_some())
        .unwrap();
    assert_eq!(letter["MessageBody"], failing.to_string());
    assert_eq!(letter["MessageAttributes"]["RequestID"]["StringValue"], id);
    let record = all.iter().find(|one| one.get("version").is_some()).unwrap();
    assert_eq!(record["requestContext"]["condition"], "RetriesExhausted");
    assert_eq!(record["requestContext"]["approximateInvokeCount"], 2);
    assert_eq!(record["responseContext"]["functionError"], "Unhandled");
    assert_eq!(record["responsePayload"]["errorType"], "ValueError");
    assert_eq!(bed.description("f").errors, 2);
    assert_eq!(told(&bed, 1).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn destinations_that_lead_in_a_circle_come_to_an_end() {
    let bed = Bed::start();
    let environment = json!({ "Variables": { "TELL": bed.mark("told") } });
    bed.create("told", json!({ "Environment": environment }))
        .await;
    decide(
        &bed,
        "told",
        json!({ "DestinationConfig": { "OnSuccess": { "Destination": FUNCTION } } }),
    )
    .await;
    bed.node
        .invoke_event(&target("told"), Bytes::from_static(b"1"), None)
        .await
        .unwrap();
    done(&bed).await;
    assert_eq!(told(&bed, 17).await.len(), 17);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_does_not_give_more_attempts() {
    let bed = Bed::with(|config| config.async_retry_s = vec![3600]);
    bed.create("f", json!({})).await;
    decide(&bed, "f", json!({ "MaximumRetryAttempts": 1 })).await;
    let mark = bed.mark("mark");
    send(
        &bed,
        &json!({ "do": "append", "mark": mark, "failures": 100 }),
    )
    .await;
    while bed.description("f").errors < 1 {
        pause().await;
    }
    bed.quiet("f").await;
    // The second and last attempt comes with the restart.
    let bed = bed.restart().await;
    done(&bed).await;
    assert_eq!(fs::read_to_string(&mark).unwrap().lines().count(), 2);
    let bed = bed.restart().await;
    assert_eq!(bed.node.pending_events(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_accepted_is_bounded_and_what_is_wrong_is_refused() {
    let bed = Bed::with(|config| {
        config.async_max_pending = 1;
        config.max_async_concurrency = 1;
    });
    bed.create("f", json!({})).await;
    let mark = bed.mark("mark");
    send(&bed, &json!({ "do": "wait", "mark": mark })).await;
    let more = bed
        .node
        .invoke_event(&target("f"), Bytes::from_static(b"1"), None)
        .await;
    assert!(matches!(more, Err(Refusal::TooManyRequests(_))), "{more:?}");
    exists(&mark).await;
    fs::remove_file(&mark).unwrap();
    done(&bed).await;
    for (config, word) in [
        (json!({ "MaximumRetryAttempts": 3 }), "maximumRetryAttempts"),
        (
            json!({ "MaximumEventAgeInSeconds": 59 }),
            "maximumEventAgeInSeconds",
        ),
        (
            json!({ "DestinationConfig": { "OnFailure": { "Destination": "arn:aws:sns:us-east-1:000000000000:t" } } }),
            "neither",
        ),
        (
            json!({ "DestinationConfig": { "OnFailure": { "Destination": "arn:aws:sqs:eu-west-1:000000000000:q" } } }),
            "not of this node",
        ),
        (
            json!({ "DestinationConfig": { "OnFailure": { "Destination": FUNCTION } } }),
            "not found",
        ),
    ] {
        let request: EventInvokeConfig = serde_json::from_value(config).unwrap();
        let refused = bed
            .node
            .put_event_policy(&target("f"), request, false)
            .await;
        let refused = refused.unwrap_err().to_string();
        assert!(refused.contains(word), "{refused}");
    }
    assert!(bed.node.event_policy(&target("f")).is_err());
}
