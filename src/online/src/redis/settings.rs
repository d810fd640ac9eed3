//! How a Redis is reached, in Feast's `connection_string`. Knows no file and no environment.

use std::fmt;
use std::time::Duration;

/// How a Redis is reached, and how long entities live in it.
#[derive(Clone)]
pub struct Settings {
    /// Host and port: one, or some of a cluster's.
    pub nodes: Vec<(String, u16)>,
    /// Whether the nodes are of a Redis Cluster.
    pub cluster: bool,
    /// The user; none is Redis' default user.
    pub username: Option<String>,
    /// The password; never shown.
    pub password: Option<String>,
    /// The database's number; a cluster has only 0.
    pub db: i64,
    /// Whether to speak TLS.
    pub tls: bool,
    /// PEM file of the certificates to trust; none is the system's.
    pub ca_certs: Option<std::path::PathBuf>,
    /// Whether the certificate is not checked.
    pub insecure: bool,
    /// How long an entity lives after its last write; none is for ever.
    pub key_ttl: Option<Duration>,
    /// How long to wait for a connection.
    pub connect_timeout: Duration,
    /// How long to wait for an answer.
    pub response_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            nodes: vec![("localhost".into(), 6379)],
            cluster: false,
            username: None,
            password: None,
            db: 0,
            tls: false,
            ca_certs: None,
            insecure: false,
            key_ttl: None,
            connect_timeout: Duration::from_secs(5),
            response_timeout: Duration::from_secs(10),
        }
    }
}

/// Never with the password.
impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Settings({}, db {})", self.address(), self.db)
    }
}

impl Settings {
    /// Reads `host:port,host:port,name=value,…` as Feast does; gives also the names of parameters that
    /// have no meaning here (redis-py's own).
    ///
    /// Errors: what is wrong, without the password.
    pub fn parse(connection_string: &str) -> Result<(Self, Vec<String>), String> {
        let (mut settings, mut ignored) = (Self { nodes: Vec::new(), ..Self::default() }, Vec::new());
        for part in connection_string.split(',').map(str::trim) {
            match part.split_once('=') {
                Some((name, value)) => {
                    if !settings.set(name.trim(), unquoted(value.trim()))? {
                        ignored.push(name.trim().to_owned());
                    }
                }
                None => settings.nodes.push(node(part)?),
            }
        }
        if settings.nodes.is_empty() {
            return Err("the connection_string names no host: write it as host:port".into());
        }
        Ok((settings, ignored))
    }

    fn set(&mut self, name: &str, value: &str) -> Result<bool, String> {
        let wrong = |wanted: &str| format!("the connection_string's {name} is '{value}', and must be {wanted}");
        let seconds = || {
            let seconds = value.parse().ok().and_then(|s| Duration::try_from_secs_f64(s).ok());
            seconds.filter(|s| !s.is_zero()).ok_or_else(|| wrong("a number of seconds"))
        };
        match name {
            "db" => self.db = value.parse().map_err(|_| wrong("a number"))?,
            "ssl" => {
                self.tls = match value.to_ascii_lowercase().as_str() {
                    "true" | "1" => true,
                    "false" | "0" | "" => false,
                    _ => return Err(wrong("true or false")),
                }
            }
            "ssl_ca_certs" => self.ca_certs = Some(value.into()),
            "ssl_cert_reqs" => self.insecure = value.eq_ignore_ascii_case("none"),
            "username" => self.username = Some(value.to_owned()),
            "password" => self.password = Some(value.to_owned()),
            "socket_timeout" => self.response_timeout = seconds()?,
            "socket_connect_timeout" => self.connect_timeout = seconds()?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// The nodes, for messages.
    pub fn address(&self) -> String {
        self.nodes.iter().map(|(host, port)| format!("{host}:{port}")).collect::<Vec<_>>().join(",")
    }
}

/// `host:port`; Redis' port where there is none.
fn node(part: &str) -> Result<(String, u16), String> {
    let (host, port) = part.rsplit_once(':').unwrap_or((part, "6379"));
    match port.parse() {
        Ok(port) if !host.is_empty() => Ok((host.to_owned(), port)),
        _ => Err(format!("'{part}' in the connection_string is no host:port")),
    }
}

/// Feast reads values as JSON where they are: a quoted string is its content.
fn unquoted(value: &str) -> &str {
    value.strip_prefix('"').and_then(|v| v.strip_suffix('"')).unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_connection_strings_as_feast_does() {
        let (settings, ignored) = Settings::parse(
            "r1:6379,r2:7000,skip_full_coverage_check=true,ssl=true,db=3,username=u,password=a=b,socket_timeout=0.5",
        )
        .expect("parses");
        assert_eq!(settings.nodes, [("r1".to_owned(), 6379), ("r2".to_owned(), 7000)]);
        assert!(settings.tls && !settings.cluster);
        assert_eq!((settings.db, settings.password.as_deref()), (3, Some("a=b")));
        assert_eq!(settings.response_timeout, Duration::from_millis(500));
        assert_eq!(ignored, ["skip_full_coverage_check"]);
        assert_eq!(format!("{settings:?}"), "Settings(r1:6379,r2:7000, db 3)", "the password is not shown");
        assert_eq!(Settings::parse("localhost").expect("parses").0.nodes, [("localhost".to_owned(), 6379)]);
    }

    #[test]
    fn says_what_is_wrong() {
        for (text, part) in [
            ("", "host:port"),
            ("password=secret", "names no host"),
            ("h:port,password=secret", "'h:port'"),
            ("h:1,db=one,password=secret", "db is 'one'"),
            ("h:1,password=secret,ssl=maybe", "ssl is 'maybe'"),
            ("h:1,password=secret,socket_timeout=0", "socket_timeout is '0'"),
        ] {
            let error = Settings::parse(text).expect_err(text);
            assert!(error.contains(part), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
