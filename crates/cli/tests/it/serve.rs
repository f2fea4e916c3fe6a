//! `serve`: begins, answers, ends when it is told, and refuses what is unsafe.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Stdio};

use crate::support::{error, flash_moe};

/// A server that is ended with the test.
struct Served(Child);

impl Drop for Served {
    fn drop(&mut self) {
        // One that has ended already needs no end.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Starts a server on a free port; gives it with its address.
fn serve(more: &[&str]) -> (Served, String) {
    let mut command = flash_moe();
    command.args(["serve", "--port", "0", "--quiet", "--context", "512"]).args(more);
    let mut child = command.stderr(Stdio::piped()).spawn().expect("the program starts");
    let stderr = child.stderr.take().expect("standard error is a pipe");
    let served = Served(child);
    let mut lines = BufReader::new(stderr).lines().map_while(Result::ok);
    let address = lines.find_map(|line| line.split_once("http://").map(|(_, at)| at.to_owned()));
    (served, address.expect("the server tells its address"))
}

fn ask(address: &str, path: &str, key: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("the server listens");
    let request = format!(
        "GET {path} HTTP/1.1\r\nhost: {address}\r\nx-api-key: {key}\r\n\
                           connection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).expect("the server reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("the server answers");
    answer
}

#[test]
fn it_answers_and_ends_when_it_is_told() {
    let (mut served, address) = serve(&[]);
    assert!(ask(&address, "/health", "").contains("\"status\":\"ok\""));
    assert!(ask(&address, "/v1/models", "").contains("\"id\":\"demo\""));
    if cfg!(unix) {
        let id = served.0.id().to_string();
        let told = std::process::Command::new("kill").args(["-TERM", &id]).status();
        assert!(told.expect("kill runs").success());
        assert!(served.0.wait().expect("the program ends").success());
    }
}

#[test]
fn names_and_keys_are_those_that_were_given() {
    let (_served, address) = serve(&["--model-name", "tale", "--api-key", "secret"]);
    assert!(ask(&address, "/v1/models", "wrong").starts_with("HTTP/1.1 401"));
    assert!(ask(&address, "/v1/models", "secret").contains("\"id\":\"tale\""));
}

#[test]
fn it_does_not_serve_everybody_by_accident() {
    let message = error(&["serve", "--host", "0.0.0.0", "--port", "0"]);
    assert!(message.contains("hint: give --api-key"), "{message}");
}
