//! Servers of the Model Context Protocol: a small one, and ones that do everything wrong.

use std::time::Duration;

use terminal::config::McpConfig;
use terminal::tools::{McpServer, shortened};

/// A server in the shell's language: two pages of tools, one that gives back its arguments, one that fails,
/// one that never answers. It pings before it answers a call.
const SERVER: &str = r#"
while read -r line; do
    id=$(printf '%s' "$line" | sed -n 's/.*"id":\([0-9]*\).*/\1/p')
    reply() { printf '{"jsonrpc":"2.0","id":%s,%s}\n' "$id" "$1"; }
    case $line in
        *'"initialize"'*) echo 'a log line'; reply '"result":{"protocolVersion":"2024-11-05","capabilities":{}}' ;;
        *'"cursor"'*) reply '"result":{"tools":[{"name":"fail"},{"name":"sleep"}]}' ;;
        *'"tools/list"'*) reply '"result":{"nextCursor":"2","tools":[{"name":"echo it","description":"Says it.",
            "inputSchema":{"type":"object","properties":{"text":{"type":"string"}}}}]}' | tr -d '\n'; echo ;;
        *'"echo it"'*)
            echo '{"jsonrpc":"2.0","id":"p","method":"ping"}'
            read -r pong
            case $pong in *'"result":{}'*) ;; *) exit 1 ;; esac
            text=$(printf '%s' "$line" | sed -n 's/.*"text":"\([^"]*\)".*/\1/p')
            reply "\"result\":{\"content\":[{\"type\":\"text\",\"text\":\"$text\"},{\"type\":\"image\",\"data\":\"\"}]}" ;;
        *'"fail"'*) reply '"result":{"isError":true,"content":[{"type":"text","text":"it broke"}]}' ;;
    esac
done
"#;

fn config(script: &str) -> McpConfig {
    let args = vec!["-c".to_owned(), script.to_owned()];
    McpConfig { command: "sh".to_owned(), args, env: Default::default() }
}

#[test]
fn tools_are_listed_and_called() {
    let mut server = McpServer::start("small", &config(SERVER)).expect("it starts");
    let tools = server.tools().to_vec();
    let names: Vec<&str> = tools.iter().map(|tool| tool.name.as_str()).collect();
    assert_eq!(names, ["small_echo_it", "small_fail", "small_sleep"]);
    let function = &tools[0].definition["function"];
    assert_eq!(function["description"], "Says it.");
    assert_eq!(function["parameters"]["properties"]["text"]["type"], "string");
    let time = Duration::from_secs(20);
    let said = server.call(&tools[0], r#"{"text":"hello"}"#, time, &mut || false);
    assert_eq!(said.expect("it answers"), "hello\n[image left out]");
    let failed = server.call(&tools[1], "{}", time, &mut || false).expect_err("it fails");
    assert_eq!(failed.to_string(), "it broke");
    let short = Duration::from_millis(200);
    let late = server.call(&tools[2], "{}", short, &mut || false).expect_err("it never answers");
    assert!(late.to_string().contains("no answer"), "{late}");
    let stopped = server.call(&tools[2], "{}", time, &mut || true).expect_err("it is stopped");
    assert!(stopped.to_string().contains("by the user"), "{stopped}");
    assert!(server.call(&tools[0], "nonsense", time, &mut || false).is_err());
    let again = server.call(&tools[0], r#"{"text":"again"}"#, time, &mut || false);
    assert!(again.is_ok(), "late answers do not disturb later calls");
}

#[test]
fn servers_that_do_not_work_are_named() {
    for (config, words) in [
        (config("exit 0"), "ended"),
        (
            config(r#"read -r x; echo '{"id":1,"error":{"message":"no \u001b[2J"}}'"#),
            "no \u{241b}[2J",
        ),
        (
            config(
                r#"read -r x; echo '{"id":1,"result":{}}'; read -r x; read -r x; echo '{"id":2,"result":{}}'"#,
            ),
            "list",
        ),
        (
            McpConfig { command: "/missing/program".into(), args: vec![], env: Default::default() },
            "/missing/program",
        ),
    ] {
        let error = McpServer::start("bad", &config).err().expect("it does not work");
        let error = format!("{error:#}");
        assert!(error.contains("MCP server bad") && error.contains(words), "{error}");
    }
}

#[test]
fn a_server_that_neither_reads_nor_stops_talking_holds_nobody_up() {
    let script = r#"read -r x; echo '{"id":1,"result":{}}'; read -r x; read -r x
        echo '{"id":2,"result":{"tools":[{"name":"x"}]}}'; exec yes '{"method":"noise"}'"#;
    let mut server = McpServer::start("deaf", &config(script)).expect("it starts");
    let tool = server.tools()[0].clone();
    // More than a pipe holds.
    let arguments = format!("{{\"text\":\"{}\"}}", "x".repeat(1 << 20));
    let mut asked = 0;
    let mut stop = || {
        asked += 1;
        asked == 3
    };
    let stopped = server.call(&tool, &arguments, Duration::from_secs(600), &mut stop);
    let error = stopped.expect_err("it is stopped").to_string();
    assert!(error.contains("by the user"), "{error}");
}

#[test]
fn long_results_are_cut_between_characters() {
    assert_eq!(shortened("abc", 3), "abc");
    assert_eq!(shortened("a\u{e9}\u{e9}", 4), "a\u{e9}\n[2 bytes left out]");
}
