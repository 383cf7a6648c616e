//! What a configuration may say, and how a wrong one is told.
#![allow(clippy::unwrap_used)]
use super::*;

#[test]
fn the_defaults_are_a_configuration_of_their_own() {
    let written = toml::to_string(&Config::default()).unwrap();
    let read = Config::parse(&written).unwrap();
    assert_eq!(written, toml::to_string(&read).unwrap());
    read.check().unwrap();
}

#[test]
fn every_key_of_the_contract_can_be_given() {
    let config = Config::parse(
        r#"
        data_dir = "./trueup-data"
        [server]
        listen = "127.0.0.1:8080"
        pg_listen = "127.0.0.1:5433"
        [auth]
        tokens = [
            { token = "collectors-token", role = "collector", publishers = ["pub_17"] },
            { token = "analysts-token", role = "analyst" },
        ]
        [log]
        kind = "embedded"
        partitions = 4
        fsync = "batch"
        segment_bytes_max = "256MiB"
        retention = "7d"
        [kafka]
        brokers = "127.0.0.1:9092"
        events_topic = "ad-events"
        verdicts_topic = "ad-verdicts"
        encoding = "batch"
        [time]
        tick = "100ms"
        allowed_lateness = "5m"
        correction_horizon = "24h"
        future_skew_max = "5m"
        [workers]
        threads = 2
        hosts = []
        [limits]
        body_bytes_max = "16MiB"
        body_decoded_bytes_max = "64MiB"
        events_per_batch_max = 50000
        "#,
    );
    config.unwrap().check().unwrap();
}

#[test]
fn an_unknown_key_names_the_nearest() {
    let error = Config::parse("[time]\nallowed_latenes = \"5m\"").unwrap_err().0;
    assert!(error.contains("did you mean `allowed_lateness`?"), "{error}");
    let error = Config::parse("[time]\ntick = \"5 minutes\"").unwrap_err().0;
    assert!(error.contains("`5 minutes` is no duration"), "{error}");
    let error = Config::parse("[log]\nkind = \"pulsar\"").unwrap_err().0;
    assert!(error.contains("kafka") && error.contains("embedded"), "{error}");
}

#[test]
fn what_does_not_go_together_is_refused() {
    let check = |text: &str| Config::parse(text).unwrap().check().map_err(|e| e.0);
    let error = check("[time]\nallowed_lateness = \"2d\"").unwrap_err();
    assert!(error.contains("correction_horizon"), "{error}");
    let error = check("[checkpoint]\nkept = 1").unwrap_err();
    assert!(error.contains("checkpoint.kept") && error.contains("2 to 1000"), "{error}");
    let error = check("[server]\nlisten = \"0.0.0.0:80\"").unwrap_err();
    assert!(error.contains("token"), "{error}");
    for (queries, said) in [
        ("page_rows_max = 0", "`queries.page_rows_max` is 0; give 1 to 100000000"),
        ("unread_ms_max = 0", "`queries.unread_ms_max` is 0; give 1 to 3600000"),
        (
            "subscribers_max = 9223372036854775807",
            "`queries.subscribers_max` is 9223372036854775807; give 0 to 1000000",
        ),
        (
            "answer_bytes_in_flight_max = \"64KiB\"",
            "`queries.answer_bytes_in_flight_max` is 65536; give 1048576 to 1099511627776",
        ),
    ] {
        assert_eq!(check(&format!("[queries]\n{queries}")).unwrap_err(), said);
    }
    let tokens = "[auth]\ntokens = [ { token = \"short\", role = \"reader\" } ]";
    check(tokens).unwrap();
    let error = check(&format!("{tokens}\n[server]\nlisten = \"0.0.0.0:80\"")).unwrap_err();
    assert!(error.contains("`auth.tokens[0]` has 5 bytes"), "{error}");
}
