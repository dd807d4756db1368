use super::*;

fn request(json: serde_json::Value) -> CreateFunction {
    let mut whole = serde_json::json!({
        "FunctionName": "f", "Role": "arn:aws:iam::000000000000:role/r", "Runtime": "python3.11", "Handler": "app.handler",
        "Code": {"ZipFile": ""},
    });
    whole
        .as_object_mut()
        .unwrap()
        .extend(json.as_object().unwrap().clone());
    serde_json::from_value(whole).unwrap()
}

fn refused(json: serde_json::Value) -> Refusal {
    create(&request(json), "f").unwrap_err()
}

#[test]
fn defaults_are_those_of_lambda() {
    let settings = create(&request(serde_json::json!({})), "f").unwrap();
    assert_eq!(
        (
            settings.timeout_s,
            settings.memory_mib,
            settings.ephemeral_mib
        ),
        (3, 128, 512)
    );
    assert_eq!(settings.log_group, "/aws/lambda/f");
}

#[test]
fn texts_are_those_of_lambda() {
    assert_eq!(
        refused(serde_json::json!({"SnapStart": {"ApplyOn": "invalidOption"}})).to_string(),
        "1 validation error detected: Value 'invalidOption' at 'snapStart.applyOn' failed to satisfy constraint: Member must satisfy enum value set: [PublishedVersions, None]"
    );
    assert_eq!(
        refused(serde_json::json!({"MemorySize": 64, "Timeout": 0})).to_string(),
        "2 validation errors detected: Value '0' at 'timeout' failed to satisfy constraint: Member must have value greater than or equal to 1; Value '64' at 'memorySize' failed to satisfy constraint: Member must have value greater than or equal to 128"
    );
    let reserved = refused(
        serde_json::json!({"Environment": {"Variables": {"AWS_REGION": "x", "OK_1": "y"}}}),
    );
    assert!(
        reserved
            .to_string()
            .ends_with("Reserved keys used in this request: AWS_REGION"),
        "{reserved}"
    );
    assert!(
        matches!(refused(serde_json::json!({"Runtime": "cobol85"})), Refusal::InvalidParameterValue(t) if t.starts_with("Value cobol85 at 'runtime'"))
    );
    assert!(matches!(
        refused(serde_json::json!({"Role": "me"})),
        Refusal::Validation(_)
    ));
    assert!(matches!(
        refused(serde_json::json!({"Environment": {"Variables": {"1A": ""}}})),
        Refusal::Validation(_)
    ));
    assert!(matches!(
        refused(serde_json::json!({"Layers": ["arn:x"]})),
        Refusal::InvalidParameterValue(_)
    ));
    let big = "x".repeat(4096);
    assert!(matches!(
        refused(serde_json::json!({"Environment": {"Variables": {"BIG": big}}})),
        Refusal::InvalidParameterValue(_)
    ));
}

#[test]
fn an_update_keeps_what_it_does_not_name() {
    let old = create(
        &request(serde_json::json!({"Timeout": 9, "Environment": {"Variables": {"AA": "1"}}})),
        "f",
    )
    .unwrap();
    let change = Settings {
        memory_size: Some(256),
        ..Settings::default()
    };
    let new = update(&old, None, &change).unwrap();
    assert_eq!(
        new,
        FunctionSettings {
            memory_mib: 256,
            ..old
        }
    );
}
