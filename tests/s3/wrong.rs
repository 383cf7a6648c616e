//! A place that cannot be used: what a start says of it, and that it says so before long.

use crate::{
    buckets::{endpoint, fresh_name},
    server::Home,
};
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// No start may be silent for longer.
const TOLD: Duration = Duration::from_secs(45);
/// An address that nobody listens on.
const NOBODY: &str = "http://127.0.0.1:1";

/// A service that gives one answer to whoever gets an object, and another to whoever puts one.
fn service(get: &'static str, put: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || answer(stream, get, put));
        }
    });
    format!("http://{address}")
}

/// One request a connection. No body that is sent here is longer than a packet.
fn answer(mut stream: TcpStream, get: &str, put: &str) {
    let mut head = [0; 16 << 10];
    let Ok(bytes) = stream.read(&mut head) else { return };
    let answer = if head[..bytes].starts_with(b"PUT") { put } else { get };
    // Who asked may be gone.
    drop(stream.write_all(answer.as_bytes()));
}

const NO_KEY: &str = "HTTP/1.1 404 Not Found\r\ncontent-type: application/xml\r\n\
    connection: close\r\n\r\n<Error><Code>NoSuchKey</Code></Error>";
const TAKEN: &str =
    "HTTP/1.1 200 OK\r\netag: \"1\"\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
const DENIED: &str = "HTTP/1.1 403 Forbidden\r\ncontent-type: application/xml\r\n\
    connection: close\r\n\r\n<Error><Code>AccessDenied</Code></Error>";

/// Starts a server, which must end by itself; its exit code and what it said.
fn refused(store: &str, set: impl FnOnce(&mut Command)) -> (Option<i32>, String) {
    let home = Home::new(&format!("[checkpoint]\nstore = \"{store}\"\n"));
    let mut command = home.serve();
    set(&mut command);
    let (mut child, began) = (command.stdout(Stdio::null()).spawn().unwrap(), Instant::now());
    while began.elapsed() < TOLD {
        if let Some(status) = child.try_wait().unwrap() {
            return (status.code(), home.stderr());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    panic!("{store}: nothing is said after {TOLD:?}:\n{}", home.stderr());
}

#[track_caller]
fn assert_told(store: &str, told: (Option<i32>, String), code: i32, texts: &[&str]) {
    let (found, said) = told;
    assert_eq!(found, Some(code), "{store}: {said}");
    for text in texts {
        assert!(said.contains(text), "{store}: `{text}` is not in: {said}");
    }
    assert!(said.contains(store), "{store} is not named: {said}");
}

#[test]
fn a_bucket_that_is_missing_is_named() {
    let bucket = fresh_name();
    let store = format!("s3://{bucket}/prefix");
    let told = refused(&store, |_| {});
    assert_told(&store, told, 2, &[&format!("no bucket `{bucket}`"), "make it"]);
}

#[test]
fn credentials_that_are_refused_or_missing_are_told() {
    let store = "s3://some-bucket/prefix";
    let denied = refused(store, |command| {
        command.env("AWS_ENDPOINT", service(DENIED, DENIED));
    });
    assert_told(store, denied, 2, &["`some-bucket`", "AWS_SECRET_ACCESS_KEY", "AccessDenied"]);
    let none = refused(store, |command| {
        command.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY");
        command.env("AWS_METADATA_ENDPOINT", NOBODY);
    });
    assert_told(store, none, 2, &["no credentials", "`some-bucket`", "AWS_ACCESS_KEY_ID"]);
    let half = refused(store, |command| {
        command.env_remove("AWS_SECRET_ACCESS_KEY");
    });
    assert_told(store, half, 2, &["SecretAccessKey"]);
}

/// Not the configuration's fault: another exit code, and whoever keeps the process up tries again.
#[test]
fn a_service_that_is_not_there_or_says_nothing_is_waited_for_a_while() {
    let store = "s3://some-bucket/prefix";
    let nobody = refused(store, |command| {
        command.env("AWS_ENDPOINT", NOBODY);
    });
    assert_told(store, nobody, 70, &["nobody answers", "`some-bucket`", "AWS_ENDPOINT"]);
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap();
    let silence = refused(store, |command| {
        command.env("AWS_ENDPOINT", format!("http://{address}")).env("AWS_TIMEOUT", "2s");
    });
    assert_told(store, silence, 70, &["nobody answers", "`some-bucket`"]);
    drop(silent);
}

#[test]
fn a_service_that_overwrites_what_is_there_is_refused() {
    let store = "s3://some-bucket";
    let told = refused(store, |command| {
        command.env("AWS_ENDPOINT", service(NO_KEY, TAKEN));
    });
    assert_told(store, told, 2, &["If-None-Match", "another service"]);
}

#[test]
fn what_is_no_place_is_told() {
    assert!(endpoint().starts_with("http"), "{}", endpoint());
    for (store, text) in [
        ("s3:///prefix", "names no bucket"),
        ("gs://bucket/prefix", "file:// or s3://"),
        ("memory:///", "file:// or s3://"),
    ] {
        assert_told(store, refused(store, |_| {}), 2, &[text]);
    }
}
