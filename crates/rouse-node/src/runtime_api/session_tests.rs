use super::*;

fn event(id: &str) -> Event {
    Event {
        request_id: id.into(),
        function_arn: "arn".into(),
        timeout: Duration::from_secs(3),
        trace_id: "Root=1".into(),
        client_context: None,
        payload: Bytes::from_static(b"{}"),
        rehearsal: false,
    }
}

fn response(text: &'static str) -> RuntimeAnswer {
    RuntimeAnswer::Response {
        body: Bytes::from_static(text.as_bytes()),
        content_type: None,
    }
}

fn failure() -> RuntimeError {
    RuntimeError {
        error_type: "Runtime.X".into(),
        body: Bytes::new(),
    }
}

#[test]
fn an_event_that_waits_is_given_to_the_first_next() {
    let session = Session::started(false);
    let mut answer = session.begin(event("1"));
    assert_eq!(session.delivered(), None);
    assert!(matches!(session.next(1), Ok(Next::Now(e)) if e.request_id == "1"));
    assert!(session.delivered().is_some());
    session.answer_begins("1", "InvocationResponse").unwrap();
    session.answer(response("ok"));
    assert_eq!(answer.try_recv().unwrap(), response("ok"));
    assert!(matches!(session.next(1), Ok(Next::Wait(_))));
    assert_eq!(
        *session.phases().borrow(),
        Phase::Parked {
            point: SnapshotPoint::InvocationNext,
            port: 1
        }
    );
}

#[test]
fn a_lost_connection_does_not_lose_the_event() {
    let session = Session::started(false);
    drop(session.next(1).unwrap());
    let _answer = session.begin(event("1"));
    assert_eq!(session.state(), RuntimeState::Ready);
    assert!(matches!(session.next(2), Ok(Next::Now(e)) if e.request_id == "1"));
}

#[test]
fn the_snapshot_protocol_runs_in_order() {
    let session = Session::started(true);
    let mut parked = session.restore_next(9, RestoreAccepts::default()).unwrap();
    assert!(parked.try_recv().is_err());
    assert_eq!(
        *session.phases().borrow(),
        Phase::Parked {
            point: SnapshotPoint::RestoreNext,
            port: 9
        }
    );
    assert_eq!(
        session.next(9).unwrap_err().to_string(),
        "State transition from RestoreReady to Ready failed for runtime. Error: State transition is not allowed"
    );

    let copy = Session::restored(SnapshotPoint::RestoreNext);
    let _answer = copy.begin(event("1"));
    assert!(copy.restore_next(9, RestoreAccepts::default()).is_err());
    assert!(matches!(copy.next(9), Ok(Next::Now(_))));

    let copy = Session::restored(SnapshotPoint::RestoreNext);
    copy.init_error(failure()).unwrap();
    assert_eq!(*copy.phases().borrow(), Phase::RestoreError(failure()));
}

#[test]
fn a_copy_parked_in_next_runs_at_once() {
    let copy = Session::restored(SnapshotPoint::InvocationNext);
    let mut answer = copy.begin_parked(&event("7"));
    assert_eq!(copy.state(), RuntimeState::Running);
    copy.answer_begins("7", "InvocationResponse").unwrap();
    copy.answer(RuntimeAnswer::TooLarge);
    assert_eq!(answer.try_recv().unwrap(), RuntimeAnswer::TooLarge);
}

#[test]
fn an_event_that_comes_with_the_restore_is_answered_or_the_hooks_fail() {
    let copy = Session::restored(SnapshotPoint::RestoreWithEvent);
    let mut answer = copy.begin_parked(&event("7"));
    assert_eq!(copy.state(), RuntimeState::Restoring);
    copy.answer_begins("7", "InvocationResponse").unwrap();
    copy.answer(RuntimeAnswer::TooLarge);
    assert_eq!(answer.try_recv().unwrap(), RuntimeAnswer::TooLarge);
    assert!(copy.restore_error(failure()).is_err());

    let copy = Session::restored(SnapshotPoint::RestoreWithEvent);
    let _answer = copy.begin_parked(&event("8"));
    copy.restore_error(failure()).unwrap();
    assert!(copy.answer_begins("8", "InvocationResponse").is_err());
}

#[test]
fn wrong_ids_and_second_answers_are_denied() {
    let session = Session::started(false);
    assert_eq!(
        session.answer_begins("1", "InvocationResponse"),
        Err(Denied::RequestId)
    );
    let _answer = session.begin(event("1"));
    session.next(1).unwrap();
    assert_eq!(
        session.answer_begins("2", "InvocationResponse"),
        Err(Denied::RequestId)
    );
    session.answer_begins("1", "InvocationResponse").unwrap();
    session.answer(response(""));
    assert_eq!(
        session.answer_begins("1", "InvocationErrorResponse"),
        Err(Denied::Transition {
            from: "RuntimeResponseSentState",
            to: "InvocationErrorResponse"
        })
    );
    assert!(session.init_error(failure()).is_err());
    assert!(session.restore_error(failure()).is_err());
}

/// Any order of requests: never a panic, and a runtime that has an event never gets a second one.
mod any_order {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn keeps_the_invariants(steps in proptest::collection::vec(0u8..7, 0..40), snapshotting: bool) {
            let session = Session::started(snapshotting);
            let (mut open, mut number) = (false, 0u32);
            let mut receivers = Vec::new();
            let mut waits = Vec::new();
            for step in steps {
                match step {
                    0 => match session.next(1) {
                        Ok(Next::Now(_)) => prop_assert!(open),
                        Ok(Next::Wait(wait)) => waits.push(wait),
                        Err(_) => prop_assert!(session.state() != RuntimeState::Ready),
                    },
                    1 => drop(session.restore_next(1, RestoreAccepts::parse("invocation"))),
                    2 => drop(session.init_error(failure())),
                    3 => drop(session.restore_error(failure())),
                    4 if !open => {
                        number += 1;
                        receivers.push(session.begin(event(&number.to_string())));
                        open = true;
                    }
                    5 => {
                        if session.answer_begins(&number.to_string(), "InvocationResponse").is_ok() {
                            prop_assert!(open);
                            session.answer(RuntimeAnswer::TooLarge);
                            prop_assert!(receivers.pop().unwrap().try_recv().is_ok());
                            open = false;
                        }
                    }
                    _ => drop(waits.pop()),
                }
            }
        }
    }
}

#[test]
fn only_a_template_parks_as_one() {
    assert!(!Session::started(true).is_template());
    let session = Session::template();
    assert!(session.is_template() && !session.snapshotting());
    let released = session.template_next(7).unwrap();
    assert_eq!(*session.phases().borrow(), Phase::Template { port: 7 });
    assert_eq!(session.state(), RuntimeState::TemplateReady);
    // Nothing of a function may happen in it, or be in it.
    assert!(matches!(session.next(7), Err(Denied::Transition { .. })));
    assert!(session.init_error(failure()).is_err());
    let session = Session::template();
    assert!(matches!(session.next(1), Ok(Next::Wait(_))));
    assert!(session.template_next(1).is_err());
    drop(released);
}

#[test]
fn warm_up_events_come_before_the_snapshot() {
    let session = Session::warming(true);
    assert!(matches!(session.warm_up_next(), Ok(Some(Next::Wait(_)))));
    assert_eq!(*session.phases().borrow(), Phase::WarmUp);
    // It lost its connection and asks again; then one event is waited for, and one comes before it is asked for.
    let Ok(Some(Next::Wait(mut waiting))) = session.warm_up_next() else {
        panic!("there is no event yet")
    };
    let mut answers = Vec::new();
    answers.push(session.begin(event("1")));
    assert_eq!(waiting.try_recv().unwrap().request_id, "1");
    session.answer_begins("1", "InvocationResponse").unwrap();
    session.answer(response("one"));
    answers.push(session.begin(event("2")));
    assert!(matches!(session.warm_up_next(), Ok(Some(Next::Now(e))) if e.request_id == "2"));
    session.answer_begins("2", "InvocationResponse").unwrap();
    session.answer(response("two"));
    for (answer, text) in answers.iter_mut().zip(["one", "two"]) {
        assert_eq!(answer.try_recv().unwrap(), response(text));
    }
    // Not before it has asked, and been told, that there is nothing more.
    assert!(
        session
            .restore_next(1, RestoreAccepts::parse("invocation"))
            .is_err()
    );
    session.end_warm_up();
    assert!(matches!(session.warm_up_next(), Ok(None)));
    assert!(
        session
            .restore_next(1, RestoreAccepts::parse("invocation"))
            .is_ok()
    );
    assert!(session.warm_up_next().is_err());
}

#[test]
fn a_runtime_that_waits_for_warm_up_events_is_told_that_there_are_no_more() {
    let session = Session::warming(true);
    let Ok(Some(Next::Wait(mut waiting))) = session.warm_up_next() else {
        panic!("there is no event yet")
    };
    session.end_warm_up();
    assert!(waiting.try_recv().is_err());
    assert_eq!(session.state(), RuntimeState::Started);
    assert_eq!(*session.phases().borrow(), Phase::Working);
    assert!(
        session
            .restore_next(1, RestoreAccepts::parse("invocation"))
            .is_ok()
    );
    // Without a warm-up it is told at once.
    assert!(matches!(Session::started(true).warm_up_next(), Ok(None)));
}

#[test]
fn what_a_runtime_accepts_is_a_list_of_words() {
    let accepts = |text| {
        let RestoreAccepts {
            invocation,
            rehearsal,
        } = RestoreAccepts::parse(text);
        (invocation, rehearsal)
    };
    assert_eq!(accepts("invocation"), (true, false));
    assert_eq!(accepts("invocation, rehearsal"), (true, true));
    assert_eq!(accepts("other,rehearsal ,invocation"), (true, true));
    assert_eq!(accepts("rehearsal"), (false, false), "it comes as an event");
    assert_eq!(accepts("invocations"), (false, false));
    assert_eq!(accepts(""), (false, false));
}
