//! Parses `resolv.conf` for the name servers and the names that the system's resolver would query.

use std::net::{IpAddr, Ipv4Addr};

/// The settings of a `resolv.conf`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ResolvConf {
    /// In the order in which they are queried.
    pub(crate) servers: Vec<IpAddr>,
    search: Vec<String>,
    ndots: usize,
}

impl ResolvConf {
    /// Ignores unknown settings, as the system's resolver does.
    pub(crate) fn parse(text: &str) -> Self {
        let mut settings = Self { servers: Vec::new(), search: Vec::new(), ndots: 1 };
        for line in text.lines().filter(|line| !line.starts_with(['#', ';'])) {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => settings.servers.extend(words.next().and_then(|ip| ip.parse::<IpAddr>().ok())),
                // The last of several counts.
                Some("search" | "domain") => {
                    settings.search = words.take(MAX_SEARCH_DOMAINS).map(str::to_owned).collect();
                }
                Some("options") => {
                    let ndots = words.filter_map(|word| word.strip_prefix("ndots:")?.parse().ok()).next_back();
                    settings.ndots = ndots.unwrap_or(settings.ndots).min(MAX_NDOTS);
                }
                _ => {}
            }
        }
        if settings.servers.is_empty() {
            settings.servers.push(Ipv4Addr::LOCALHOST.into());
        }
        settings.servers.truncate(MAX_SERVERS);
        settings
    }

    /// The names to query in turn until one exists.
    pub(crate) fn candidates(&self, name: &str) -> Vec<String> {
        let in_domains = self.search.iter().map(|domain| format!("{name}.{}", domain.trim_start_matches('.')));
        let itself = std::iter::once(name.to_owned());
        if name.matches('.').count() >= self.ndots {
            itself.chain(in_domains).collect()
        } else {
            in_domains.chain(itself).collect()
        }
    }
}

/// The limits of the system's resolver, except for search domains, whose number it no longer limits.
const MAX_SERVERS: usize = 3;
const MAX_NDOTS: usize = 15;
const MAX_SEARCH_DOMAINS: usize = 8;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn servers(text: &str) -> Vec<String> {
        ResolvConf::parse(text).servers.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn first_three_servers_are_used_in_order() {
        assert_eq!(
            servers("# nameserver 10.9.9.9\nnameserver 10.0.0.1 # mine\n\tnameserver\t2001:db8::1\n"),
            ["10.0.0.1", "2001:db8::1"]
        );
        assert_eq!(servers("nameserver 10.0.0.1\n".repeat(5).as_str()).len(), 3);
        for nothing in
            ["", "search test", "nameserver", "nameserver dns.test", "nameserver 10.0.0.1:53", ";nameserver ::1"]
        {
            assert_eq!(servers(nothing), ["127.0.0.1"], "{nothing}");
        }
    }

    #[test]
    fn candidates_are_those_of_the_system_resolver() {
        let candidates = |text: &str, name: &str| ResolvConf::parse(text).candidates(name).join(" ");
        assert_eq!(candidates("", "app"), "app");
        assert_eq!(candidates("domain a.test", "app"), "app.a.test app");
        assert_eq!(candidates("domain a.test\nsearch b.test c.test", "app"), "app.b.test app.c.test app");
        assert_eq!(candidates("search b.test", "app.x"), "app.x app.x.b.test");
        assert_eq!(candidates("options ndots:2\nsearch b.test", "app.x"), "app.x.b.test app.x");
        assert_eq!(candidates("search b.test\noptions rotate ndots:99", "a.b.c"), "a.b.c.b.test a.b.c");
        assert_eq!(candidates("search .", "app"), "app. app");
    }

    proptest! {
        #[test]
        fn any_file_yields_a_server_and_the_name_itself(text in "[ -~\n]{0,200}", name in "[a-z.]{1,20}") {
            let settings = ResolvConf::parse(&text);
            prop_assert!((1..=MAX_SERVERS).contains(&settings.servers.len()));
            let candidates = settings.candidates(&name);
            prop_assert!(candidates.contains(&name) && candidates.len() <= MAX_SEARCH_DOMAINS + 1);
        }
    }
}
