//! A word with a running agent: by its Unix socket, or at an admin address with a token.

use std::{
    fs,
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Failure, NO_PERMISSION, OS_ERROR, UNAVAILABLE, USAGE, Which, say};
use crate::node::{
    history::{Entry, diff::Difference},
    runfile,
};

/// How long an agent may take to change something: a configuration of ten thousand services takes seconds.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long it may take to say how it is before it counts as hung.
const PATIENCE_TO_SEE: Duration = Duration::from_secs(5);
/// Bytes of an answer: the audit log's last changes, each as long as it may be.
const ANSWER_BYTES_MAX: u64 = 256 << 20;

/// Which agent, and by which way it is asked.
#[derive(Clone, Debug, clap::Args)]
pub struct Reach {
    #[command(flatten)]
    which: Which,
    /// Ask at this admin address instead of by the Unix socket
    #[arg(long, value_name = "IP:PORT", conflicts_with_all = ["instance", "config"])]
    admin: Option<SocketAddr>,
    /// File that holds a token, which changes by --admin need
    #[arg(long, value_name = "FILE", requires = "admin")]
    token_file: Option<PathBuf>,
}

/// What an agent answered.
#[derive(Debug)]
pub struct Said {
    status: u16,
    body: String,
}

impl Reach {
    /// Asks once.
    ///
    /// # Errors
    ///
    /// When no agent runs, it does not answer, or it does not let us.
    pub fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Said, Failure> {
        let token = match &self.token_file {
            Some(path) => Some(read_token(path)?),
            None => None,
        };
        let (place, said) = match self.admin {
            Some(admin) => (format!("http://{admin}"), by_tcp(admin, PATIENCE, method, path, body, token.as_deref())),
            None => {
                let socket = self.socket()?;
                (socket.display().to_string(), by_socket(&socket, method, path, body))
            }
        };
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::PermissionDenied => Failure::new(
                NO_PERMISSION,
                format!("sockway: {place}: {error}; run this as the user of the agent (root)"),
            ),
            _ => Failure::new(OS_ERROR, format!("sockway: the agent does not answer at {place}: {error}; see its log")),
        };
        said.map_err(failed)?.good()
    }

    fn socket(&self) -> Result<PathBuf, Failure> {
        let (instance, _) = self.which.find()?;
        let running = runfile::find(Path::new(runfile::DIRECTORY), &instance);
        running
            .map(|running| running.socket)
            .ok_or_else(|| Failure::new(UNAVAILABLE, format!("sockway: no agent of instance {instance} is running")))
    }

    /// Asks for a change, and says what came of it.
    ///
    /// # Errors
    ///
    /// When it was refused, or the agent cannot be asked.
    pub fn change(&self, method: &str, path: &str, body: Option<&Value>) -> Result<u8, Failure> {
        let entry: Entry = self.ask(method, path, body)?.read()?;
        say(tell(&entry));
        Ok(0)
    }
}

fn read_token(path: &Path) -> Result<String, Failure> {
    let text = fs::read_to_string(path);
    let text = text.map_err(|error| Failure::new(USAGE, format!("sockway: {}: {error}", path.display())))?;
    Ok(text.trim().to_owned())
}

impl Said {
    fn good(self) -> Result<Self, Failure> {
        let code = match self.status {
            200 => return Ok(self),
            401 | 403 => NO_PERMISSION,
            400 | 404 | 409 | 413 | 422 => USAGE,
            _ => OS_ERROR,
        };
        let error =
            serde_json::from_str(&self.body).ok().and_then(|said: Value| Some(said["error"].as_str()?.to_owned()));
        let error = error.unwrap_or_else(|| format!("status {}: {}", self.status, self.body.trim()));
        Err(Failure::new(code, format!("sockway: {error}")))
    }

    /// The answer as it is.
    pub fn text(&self) -> &str {
        &self.body
    }

    /// Takes the answer apart.
    ///
    /// # Errors
    ///
    /// When it is not what an agent says.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        serde_json::from_str(&self.body)
            .map_err(|error| Failure::new(OS_ERROR, format!("sockway: what answers is no agent: {error}")))
    }
}

/// What an agent says of itself at its admin address, where anybody may ask.
///
/// # Errors
///
/// When it does not answer, or with anything but 200.
pub fn get(admin: SocketAddr, path: &str) -> io::Result<String> {
    let said = by_tcp(admin, PATIENCE_TO_SEE, "GET", path, None, None)?;
    if said.status == 200 { Ok(said.body) } else { Err(io::Error::other(format!("status {}", said.status))) }
}

fn by_tcp(
    admin: SocketAddr,
    patience: Duration,
    method: &str,
    path: &str,
    body: Option<&Value>,
    token: Option<&str>,
) -> io::Result<Said> {
    let stream = TcpStream::connect_timeout(&admin, patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    exchange(stream, method, path, body, token)
}

fn by_socket(socket: &Path, method: &str, path: &str, body: Option<&Value>) -> io::Result<Said> {
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    exchange(stream, method, path, body, None)
}

/// One request with HTTP/1.0, which ends with the connection.
fn exchange(
    mut stream: impl Read + Write,
    method: &str,
    path: &str,
    body: Option<&Value>,
    token: Option<&str>,
) -> io::Result<Said> {
    let body = body.map(Value::to_string).unwrap_or_default();
    let token = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    let length = body.len();
    let head = format!("{method} {path} HTTP/1.0\r\nHost: sockway\r\n{token}Content-Length: {length}\r\n\r\n");
    stream.write_all((head + &body).as_bytes())?;
    let mut answer = String::new();
    stream.take(ANSWER_BYTES_MAX).read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| io::Error::other("the answer is no HTTP"))?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.ok_or_else(|| io::Error::other("the answer is no HTTP"))?;
    Ok(Said { status, body: body.to_owned() })
}

/// A part of a path, with what would end it written otherwise (RFC 3986 section 3.3).
pub fn segment(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:[]@".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

/// What a change came to, in lines.
pub fn tell(entry: &Entry) -> String {
    let mut lines = vec![format!("generation {}, {}", entry.generation, entry.change)];
    lines.extend(entry.diff.iter().map(|one| format!("  {}", difference(one))));
    if entry.more > 0 {
        lines.push(format!("  and {} more", entry.more));
    }
    lines.extend(entry.error.iter().map(|error| format!("refused: {error}")));
    lines.extend(entry.note.iter().map(|note| format!("note: {note}")));
    lines.join("\n") + "\n"
}

/// One key: what was said, and what is.
pub fn difference(one: &Difference) -> String {
    let said = |value: &Option<Value>| match value {
        None => "nothing".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    };
    format!("{}: {} -> {}", one.path, said(&one.old), said(&one.new))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_stands_in_a_path_ends_no_part_of_it() {
        assert_eq!(segment("shop/orders"), "shop%2Forders");
        assert_eq!(segment("[fd00::1]:80"), "[fd00::1]:80");
        assert_eq!(segment("a b?c%d"), "a%20b%3Fc%25d");
    }

    #[test]
    fn what_an_agent_does_not_do_is_a_failure_with_its_code() {
        let said = |status, body: &str| {
            Said { status, body: body.to_owned() }.good().map_err(|failure| (failure.code, failure.text))
        };
        assert!(said(200, "{}").is_ok());
        for (status, body, code, text) in [
            (401, r#"{"error":"changes need a token"}"#, 77, "sockway: changes need a token"),
            (403, r#"{"error":"changes need a token"}"#, 77, "sockway: changes need a token"),
            (422, r#"{"error":"F:1:2: no"}"#, 64, "sockway: F:1:2: no"),
            (500, "oops\n", 71, "sockway: status 500: oops"),
        ] {
            assert_eq!(said(status, body).expect_err(body), (code, text.to_owned()));
        }
    }

    #[test]
    fn a_change_is_told_key_by_key() {
        let diff = vec![
            Difference { path: "a.b".to_owned(), old: Some(json!(1)), new: Some(json!("x")) },
            Difference { path: "c".to_owned(), old: None, new: Some(json!({"d": 1})) },
        ];
        let entry = Entry { generation: 7, change: "endpoint".to_owned(), diff, more: 2, ..Entry::default() };
        let told = tell(&Entry { note: Some("the file says otherwise".to_owned()), ..entry });
        let lines = [
            "generation 7, endpoint",
            "  a.b: 1 -> x",
            "  c: nothing -> {\"d\":1}",
            "  and 2 more",
            "note: the file says otherwise\n",
        ];
        assert_eq!(told, lines.join("\n"));
    }
}
