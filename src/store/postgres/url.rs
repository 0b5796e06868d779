//! Connection URLs, including the `ssl…` options that the driver does not support.

use std::borrow::Cow;
use std::iter::Peekable;
use std::net::IpAddr;
use std::ops::Range;
use std::path::PathBuf;
use std::str::{CharIndices, FromStr};
use std::time::Duration;

use percent_encoding::percent_decode_str;
use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};

use super::fault::ConnectError;

/// The options that the driver has.
const OPTIONS: [&str; 18] = [
    "application_name",
    "channel_binding",
    "connect_timeout",
    "dbname",
    "host",
    "hostaddr",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_retries",
    "load_balance_hosts",
    "options",
    "password",
    "port",
    "sslnegotiation",
    "target_session_attrs",
    "tcp_user_timeout",
    "user",
];

/// Returns the values that an option may have, for the options that do not take any text.
fn values(option: &str) -> &'static str {
    match option {
        "channel_binding" => "disable, prefer or require",
        "host" => "a host name or a path",
        "hostaddr" => "an IP address",
        "load_balance_hosts" => "disable or random",
        "port" => "a number up to 65535",
        "sslmode" => "disable, allow, prefer, require, verify-ca or verify-full",
        "sslnegotiation" => "postgres or direct",
        "target_session_attrs" => "any, read-write or read-only",
        "connect_timeout" | "keepalives_idle" | "keepalives_interval" | "tcp_user_timeout" => {
            "a number of seconds"
        }
        _ => "a number",
    }
}

/// Builds the error of an invalid URL. `problem` must hold no text of the URL, because any part may be one of a
/// password: a password with an unescaped `@` or `?` goes on in the hosts or in the options.
fn invalid(problem: impl Into<String>) -> ConnectError {
    ConnectError::Url {
        problem: problem.into(),
    }
}

fn invalid_value(option: &str) -> ConnectError {
    invalid(format!("the value of {option} must be {}", values(option)))
}

/// Converts an error of the driver, which names only options that the driver has.
fn refused(error: &tokio_postgres::Error) -> ConnectError {
    let cause = std::error::Error::source(error).map_or_else(String::new, ToString::to_string);
    let is = |option: &&&str| cause == format!("invalid value for option `{option}`");
    match OPTIONS.iter().find(is) {
        Some(option) => invalid_value(option),
        None => invalid("a part of it is malformed"),
    }
}

/// The encryption that a URL requests in `sslmode`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Encryption {
    /// `disable`: no encryption.
    Disabled,
    /// The URL has no `sslmode`, or it has `allow` or `prefer`. Both are treated like a missing `sslmode`.
    /// Neither guarantees encryption, so an attacker on the network could prevent it.
    Unspecified,
    /// `require`, `verify-ca` or `verify-full`. This crate treats all three as `verify-full`.
    Required,
}

/// A parsed URL.
#[derive(Clone)]
pub(super) struct Url {
    pub(super) config: Config,
    pub(super) encryption: Encryption,
    pub(super) files: CertificateFiles,
}

/// The certificate files that a URL names. An empty name in the URL means no file.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct CertificateFiles {
    /// `sslrootcert`: the trusted authorities. `system` means the system's authorities.
    pub(super) roots: Option<PathBuf>,
    /// `sslcert`: the client certificate.
    pub(super) certificate: Option<PathBuf>,
    /// `sslkey`: the private key of the client certificate.
    pub(super) key: Option<PathBuf>,
}

impl Url {
    /// Parses a `postgres://…` URL, or a `host=… user=…` string. Fails on unknown options. Ignores the case of
    /// the scheme, which the driver does not.
    pub(super) fn read(url: &str) -> Result<Self, ConnectError> {
        let mut encryption = Encryption::Unspecified;
        let mut files = CertificateFiles::default();
        let mut take = |option: &str, value: &str| {
            let path = || Some(PathBuf::from(value)).filter(|_| !value.is_empty());
            match (option, value) {
                ("sslmode", "disable") => encryption = Encryption::Disabled,
                ("sslmode", "" | "allow" | "prefer") => encryption = Encryption::Unspecified,
                ("sslmode", "require" | "verify-ca" | "verify-full") => {
                    encryption = Encryption::Required;
                }
                ("sslmode", _) => return Err(invalid_value(option)),
                ("sslrootcert", _) => files.roots = path(),
                ("sslcert", _) => files.certificate = path(),
                ("sslkey", _) => files.key = path(),
                _ => return Ok(false),
            }
            Ok(true)
        };
        let rest = match after_scheme(url) {
            Some(rest) => without_parameters(rest, &mut take)?,
            None => without_words(url, &mut take)?,
        };
        let config = Config::from_str(&rest).map_err(|error| refused(&error))?;
        Ok(Self {
            config,
            encryption,
            files,
        })
    }

    /// Returns `true` if connections must be encrypted. If the options or the URL name certificates,
    /// connections are encrypted unless the URL says `sslmode=disable`.
    pub(super) fn is_encrypted(&self, certificates_given: bool) -> bool {
        match self.encryption {
            Encryption::Disabled => false,
            Encryption::Required => true,
            Encryption::Unspecified => certificates_given || !self.stays_on_this_machine(),
        }
    }

    fn stays_on_this_machine(&self) -> bool {
        let is_loopback = |ip: &IpAddr| ip.to_canonical().is_loopback();
        let here = |host: &Host| match host {
            Host::Tcp(name) => name == "localhost" || name.parse().is_ok_and(|ip| is_loopback(&ip)),
            Host::Unix(_) => true,
        };
        // If the URL has `hostaddr`, the driver connects to the addresses in it. The hosts are then only the
        // names that the servers' certificates must match.
        match self.config.get_hostaddrs() {
            [] => self.config.get_hosts().iter().all(here),
            addresses => addresses.iter().all(is_loopback),
        }
    }

    /// Fails if the URL names no server, or if its numbers of hosts, addresses and ports do not match. The driver
    /// finds this only when it connects.
    pub(super) fn check_hosts(&self) -> Result<(), ConnectError> {
        let config = &self.config;
        let (hosts, addresses) = (config.get_hosts().len(), config.get_hostaddrs().len());
        let servers = hosts.max(addresses);
        let matches = |count: usize| count == 0 || count == servers;
        let ports = config.get_ports().len();
        if servers == 0 {
            return Err(invalid("it names no host"));
        }
        match matches(hosts) && matches(addresses) && (ports == 1 || matches(ports)) {
            true => Ok(()),
            false => Err(invalid(
                "the numbers of its hosts, addresses and ports differ",
            )),
        }
    }

    /// Returns the configuration for the driver. If the URL sets no connect timeout, `limit` is used.
    pub(super) fn config(self, encrypted: bool, limit: Duration) -> Result<Config, ConnectError> {
        self.check_hosts()?;
        let mut config = self.config;
        let file = |host: &Host| matches!(host, Host::Unix(_));
        if encrypted && config.get_hosts().iter().any(file) && config.get_hostaddrs().is_empty() {
            return Err(ConnectError::Unencrypted);
        }
        config.ssl_mode(match encrypted {
            true => SslMode::Require,
            false => SslMode::Disable,
        });
        config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        if config.get_application_name().is_none() {
            config.application_name("keyward");
        }
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(limit);
        }
        Ok(config)
    }
}

/// A callback that gets the name and the value of an option in the URL. It returns `true` if it has handled
/// the option, and `false` to leave the option to the driver.
type OptionHandler<'t> = &'t mut dyn FnMut(&str, &str) -> Result<bool, ConnectError>;

/// Returns the part of a URL after its scheme, or `None` if the text is not a URL. Accepts a trailing line break,
/// because a URL that was read from a file may have one.
fn after_scheme(url: &str) -> Option<&str> {
    let url = url.trim();
    ["postgres://", "postgresql://"].iter().find_map(|scheme| {
        let (start, rest) = url.split_at_checked(scheme.len())?;
        start.eq_ignore_ascii_case(scheme).then_some(rest)
    })
}

/// Returns the index of the `?` at which the driver splits the parameters from the rest of a URL. Without
/// parameters, returns the length.
fn query(url: &str) -> usize {
    let host = url.find('@').map_or(0, |at| at + 1);
    url[host..].find('?').map_or(url.len(), |mark| host + mark)
}

fn without_parameters(url: &str, take: OptionHandler<'_>) -> Result<String, ConnectError> {
    let start = query(url);
    let mut rest = format!("postgres://{}", &url[..start]);
    let mut left = url.get(start + 1..).unwrap_or("");
    let mut mark = '?';
    for number in 1.. {
        if left.is_empty() {
            break;
        }
        let (parameter, others) = left.split_once('&').unwrap_or((left, ""));
        left = others;
        let valueless = || invalid(format!("its option {number} has no value"));
        let (option, value) = parameter.split_once('=').ok_or_else(valueless)?;
        let option = decoded(option)?;
        if !take(&option, &decoded(value)?)? {
            check_known(number, &option)?;
            rest.push(mark);
            rest += parameter;
            mark = '&';
        }
    }
    Ok(rest)
}

fn decoded(text: &str) -> Result<Cow<'_, str>, ConnectError> {
    let decoded = percent_decode_str(text).decode_utf8();
    decoded.map_err(|_| invalid("an option with `%` is not UTF-8"))
}

/// Fails on an option that the driver does not have. Its name may be a part of a password.
fn check_known(number: usize, option: &str) -> Result<(), ConnectError> {
    match OPTIONS.contains(&option) {
        true => Ok(()),
        false => Err(invalid(format!("its option {number} is not known"))),
    }
}

fn without_words(words: &str, take: OptionHandler<'_>) -> Result<String, ConnectError> {
    let mut rest = String::new();
    let mut parser = KeyValueParser {
        words,
        next: words.char_indices().peekable(),
    };
    for number in 1.. {
        let next = parser.next_pair();
        let next = next.map_err(|problem| match number {
            1 => invalid("it begins neither with postgres:// nor with an option such as host="),
            number => invalid(format!("its option {number} {problem}")),
        })?;
        let Some((at, option, value)) = next else {
            break;
        };
        if !take(option, &value)? {
            check_known(number, option)?;
            rest += &words[at];
            rest.push(' ');
        }
    }
    Ok(rest)
}

/// A parser for strings like `option = value option='value'`. A backslash escapes the next character.
struct KeyValueParser<'w> {
    words: &'w str,
    next: Peekable<CharIndices<'w>>,
}

/// The range of an option and its value in the text, the option's name, and the unescaped value.
type KeyValue<'w> = (Range<usize>, &'w str, String);

impl<'w> KeyValueParser<'w> {
    /// Returns the next option, or `None` at the end of the text. The error is the end of a sentence.
    fn next_pair(&mut self) -> Result<Option<KeyValue<'w>>, &'static str> {
        self.skip_space();
        let start = self.at();
        while (self.next.next_if(|(_, c)| !c.is_whitespace() && *c != '=')).is_some() {}
        let option = &self.words[start..self.at()];
        if option.is_empty() && self.next.peek().is_none() {
            return Ok(None);
        }
        self.skip_space();
        let equals = self.next.next_if(|(_, c)| *c == '=');
        if option.is_empty() || equals.is_none() {
            return Err("is not of the form NAME=VALUE");
        }
        self.skip_space();
        let quoted = self.next.next_if(|(_, c)| *c == '\'').is_some();
        let mut value = String::new();
        while let Some((_, c)) = (self.next).next_if(|(_, c)| {
            if quoted {
                *c != '\''
            } else {
                !c.is_whitespace()
            }
        }) {
            match c {
                '\\' => value.push(self.next.next().ok_or("ends with a backslash")?.1),
                c => value.push(c),
            }
        }
        if quoted && self.next.next().is_none() {
            return Err("has no closing quote");
        }
        Ok(Some((start..self.at(), option, value)))
    }

    fn skip_space(&mut self) {
        while self.next.next_if(|(_, c)| c.is_whitespace()).is_some() {}
    }

    fn at(&mut self) -> usize {
        self.next.peek().map_or(self.words.len(), |(at, _)| *at)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

    use proptest::prelude::*;

    use super::*;

    fn files(roots: &str, certificate: &str, key: &str) -> CertificateFiles {
        let path = |name: &str| Some(PathBuf::from(name)).filter(|_| !name.is_empty());
        CertificateFiles {
            roots: path(roots),
            certificate: path(certificate),
            key: path(key),
        }
    }

    #[test]
    fn ssl_options_are_parsed_and_all_other_options_are_left_to_the_driver() {
        use Encryption::{Disabled, Required, Unspecified};
        let all = files("/a b/ca.pem", "/c.pem", "/k'.pem");
        for (url, plain, encryption, read) in [
            (
                "postgres://alice:p%40ss@db.example:5/app?sslmode=verify-full&connect_timeout=3\
                 &sslrootcert=%2Fa%20b%2Fca.pem&sslcert=/c.pem&application_name=x&sslkey=/k'.pem",
                "postgres://alice:p%40ss@db.example:5/app?connect_timeout=3&application_name=x",
                Required,
                all.clone(),
            ),
            (
                "user=alice sslmode = verify-ca password='p w\\'d' sslrootcert='/a b/ca.pem' \
                 sslcert=/c.pem host=db.example sslkey=/k\\'.pem",
                "user=alice password='p w\\'d' host=db.example",
                Required,
                all,
            ),
            (
                "postgresql://a:x?sslmode=disable@db.example/app?ssl%6dode=require",
                "postgresql://a:x?sslmode=disable@db.example/app",
                Required,
                CertificateFiles::default(),
            ),
            (
                "host=db.example sslmode=disable sslrootcert=''",
                "host=db.example",
                Disabled,
                CertificateFiles::default(),
            ),
            (
                "postgres://db.example?sslmode=require&sslmode=prefer&sslrootcert=",
                "postgres://db.example",
                Unspecified,
                CertificateFiles::default(),
            ),
            (
                "PostgreSQL://alice@db.example/App?sslmode=require\n",
                "postgresql://alice@db.example/App",
                Required,
                CertificateFiles::default(),
            ),
            ("", "", Unspecified, CertificateFiles::default()),
        ] {
            let found = Url::read(url).unwrap();
            assert_eq!(found.config, Config::from_str(plain).unwrap(), "{url}");
            assert_eq!((found.encryption, found.files), (encryption, read), "{url}");
        }
    }

    #[test]
    fn only_connections_within_this_machine_are_unencrypted_by_default() {
        for (url, by_default) in [
            ("host=/tmp", false),
            ("host=localhost,127.0.0.1,::1,::ffff:127.0.0.1,/tmp", false),
            ("postgres://[::1]/db?sslmode=prefer", false),
            ("host=db.example hostaddr=127.0.0.2", false),
            ("host=db.example hostaddr=::ffff:127.0.0.2", false),
            ("host=localhost hostaddr=192.0.2.1", true),
            ("host=/tmp,db.example", true),
            ("host=localhost.example", true),
            ("host=0.0.0.0 sslmode=allow", true),
        ] {
            let read = |url: &str| Url::read(url).unwrap();
            assert_eq!(read(url).is_encrypted(false), by_default, "{url}");
            assert!(read(url).is_encrypted(true), "{url}");
            if !url.contains("://") {
                assert!(!read(&format!("{url} sslmode=disable")).is_encrypted(true));
                assert!(read(&format!("{url} sslmode=require")).is_encrypted(false));
            }
        }
    }

    #[test]
    fn invalid_urls_are_refused() {
        for url in [
            "host=h sslmode=verify-most",
            "postgres://h?sslmode=requires",
            "postgres://h?sslmode",
            "postgres://h?sslrootcert=%ff",
            "host=h sslrootcert='/ca.pem",
            "host=h sslrootcert",
            "host=h user=\\",
            "host=h =x sslmode=require",
            "host=h sslcrl=/x",
            "mysql://h",
        ] {
            let refused = Url::read(url).map(drop).unwrap_err();
            assert!(matches!(refused, ConnectError::Url { .. }), "{url}");
        }
    }

    #[test]
    fn the_error_names_the_invalid_part_and_quotes_none() {
        for (url, problem) in [
            ("postgres://u:p@h/db?hunter2=1", "its option 1 is not known"),
            (
                "postgres://h/db?user=u&hunter2=1",
                "its option 2 is not known",
            ),
            (
                "postgres://h/db?user=u&hunter2",
                "its option 2 has no value",
            ),
            (
                "postgres://u:p@h:hunter2/db",
                "the value of port must be a number up to 65535",
            ),
            (
                "postgres://h?connect_timeout=hunter2",
                "the value of connect_timeout must be a number of seconds",
            ),
            (
                "postgres://h?keepalives=hunter2",
                "the value of keepalives must be a number",
            ),
            (
                "postgres://h?sslmode=hunter2",
                "the value of sslmode must be disable, allow, ",
            ),
            ("host=h hunter2=1", "its option 2 is not known"),
            (
                "host=h hunter2",
                "its option 2 is not of the form NAME=VALUE",
            ),
            (
                "host=h password='hunter2",
                "its option 2 has no closing quote",
            ),
            (
                "host=h hostaddr=hunter2",
                "the value of hostaddr must be an IP address",
            ),
            (
                "postgres//u:hunter2@h/db",
                "it begins neither with postgres:// nor with an option",
            ),
            (
                "postgres//u:hunter2@h/db?sslmode=require",
                "its option 1 is not known",
            ),
        ] {
            let refused = Url::read(url).map(drop).unwrap_err().to_string();
            assert!(refused.contains(problem), "{url}: {refused}");
            assert!(!refused.contains("hunter2"), "{refused}");
        }
    }

    /// The driver names an option only in a text.
    #[test]
    fn each_option_whose_value_the_driver_checks_is_named() {
        for option in OPTIONS {
            if let Err(error) = Config::from_str(&format!("{option}=x-y")) {
                let named = refused(&error).to_string();
                assert!(
                    named.contains(&format!("the value of {option} ")),
                    "{named}"
                );
            }
        }
    }

    #[test]
    fn a_url_without_a_server_or_with_unequal_numbers_is_refused_before_the_driver_connects() {
        for (url, is_valid) in [
            ("", false),
            ("postgres://u:p@/app", false),
            ("user=u port=1", false),
            ("host=a,b port=1,2,3", false),
            ("host=a,b hostaddr=192.0.2.1", false),
            ("host=a,b port=1", true),
            ("hostaddr=192.0.2.1", true),
            ("postgres://a:1,b:2/app", true),
        ] {
            let config = Url::read(url).unwrap().config(false, Duration::ZERO);
            assert_eq!(config.is_ok(), is_valid, "{url}");
        }
    }

    proptest! {
        #[test]
        fn urls_without_ssl_options_are_parsed_as_the_driver_parses_them(url in ".*", mark in "[ ?&]") {
            // Such a URL has none of the `ssl…` options, so the driver alone decides.
            prop_assume!(!url.contains("ssl") && !url.contains('%'));
            let expected = Config::from_str(&url);
            let found = Url::read(&url);
            if let (Ok(expected), Ok(found)) = (&expected, &found) {
                prop_assert_eq!(expected, &found.config);
            }
            prop_assert!(expected.is_ok() || found.is_err());
            drop(Url::read(&format!("postgres://h{mark}{url}")));
        }

        #[test]
        fn ssl_options_are_removed_whole_from_key_value_strings(
            before in "[a-z ]{0,9}", value in "[a-z '\\\\=]{0,9}", password in "\\PC{0,9}"
        ) {
            let quoted = |text: &str| text.replace('\\', "\\\\").replace('\'', "\\'");
            let (value, secret) = (quoted(&value), quoted(&password));
            let words = format!(
                "user='x{before}' sslrootcert = '{value}'\tpassword='{secret}'sslkey='a'"
            );
            let found = Url::read(&words).unwrap();
            prop_assert_eq!(found.config.get_password(), Some(password.as_bytes()));
            prop_assert_eq!(found.config.get_user(), Some(&*format!("x{before}")));
            prop_assert_eq!(found.files.key, Some(PathBuf::from("a")));
        }
    }
}
