//! The name servers of the machine, and what they are asked in which order: `resolv.conf`, as far as needed to ask them
//! what the system's resolver would.

use std::net::{IpAddr, Ipv4Addr};

/// What a `resolv.conf` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ResolvConf {
    /// In the order in which they are asked.
    pub(crate) servers: Vec<IpAddr>,
    search: Vec<String>,
    ndots: usize,
}

impl ResolvConf {
    /// What is not understood is passed over, as the system's resolver does.
    pub(crate) fn parse(text: &str) -> Self {
        let mut settings = Self { servers: Vec::new(), search: Vec::new(), ndots: 1 };
        for line in text.lines().filter(|line| !line.starts_with(['#', ';'])) {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => settings.servers.extend(words.next().and_then(|ip| ip.parse::<IpAddr>().ok())),
                // Of several the last one counts.
                Some("search" | "domain") => {
                    settings.search = words.take(MOST_DOMAINS).map(str::to_owned).collect();
                }
                Some("options") => {
                    let ndots = words.filter_map(|word| word.strip_prefix("ndots:")?.parse().ok()).next_back();
                    settings.ndots = ndots.unwrap_or(settings.ndots).min(MOST_DOTS);
                }
                _ => {}
            }
        }
        if settings.servers.is_empty() {
            settings.servers.push(Ipv4Addr::LOCALHOST.into());
        }
        settings.servers.truncate(MOST_SERVERS);
        settings
    }

    /// Under which names a name is looked for, one after the other until there is one.
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

/// The limits of the system's resolver, but for the domains, of which it has none any more.
const MOST_SERVERS: usize = 3;
const MOST_DOTS: usize = 15;
const MOST_DOMAINS: usize = 8;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn servers(text: &str) -> Vec<String> {
        ResolvConf::parse(text).servers.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn servers_are_taken_in_order_and_three_at_most() {
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
    fn a_name_is_looked_for_where_the_system_would() {
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
        fn a_file_of_any_kind_has_servers_and_every_name_itself(text in "[ -~\n]{0,200}", name in "[a-z.]{1,20}") {
            let settings = ResolvConf::parse(&text);
            prop_assert!((1..=MOST_SERVERS).contains(&settings.servers.len()));
            let candidates = settings.candidates(&name);
            prop_assert!(candidates.contains(&name) && candidates.len() <= MOST_DOMAINS + 1);
        }
    }
}
