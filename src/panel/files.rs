//! The files of the panel, which are part of the program.

/// A file under `/ui/`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct PanelFile {
    pub(crate) name: &'static str,
    pub(crate) content: &'static [u8],
}

impl PanelFile {
    /// The file with this name; the empty name is that of the page.
    pub(crate) fn named(name: &str) -> Option<&'static Self> {
        let name = if name.is_empty() { "index.html" } else { name };
        FILES.iter().find(|file| file.name == name)
    }

    pub(crate) fn content_type(&self) -> &'static str {
        match self.name.rsplit_once('.').map(|(_, extension)| extension) {
            Some("html") => "text/html; charset=utf-8",
            Some("css") => "text/css; charset=utf-8",
            Some("js") => "text/javascript; charset=utf-8",
            Some("svg") => "image/svg+xml",
            _ => "application/octet-stream",
        }
    }
}

macro_rules! files {
    ($($name:literal)*) => {
        &[$(PanelFile { name: $name, content: include_bytes!(concat!("ui/", $name)) }),*]
    };
}

static FILES: &[PanelFile] = files! {
    "address.js"
    "api.js"
    "app.js"
    "audit.js"
    "changes.js"
    "clients.js"
    "commands.js"
    "denials.js"
    "dialogs.js"
    "dom.js"
    "expiry.js"
    "explain.js"
    "filter.js"
    "fleet.js"
    "format.js"
    "icon.svg"
    "index.html"
    "issues.js"
    "keys.js"
    "listener-picker.js"
    "overview.js"
    "plan-parts.js"
    "reload.js"
    "rotation.js"
    "router.js"
    "secrets.js"
    "sessions.js"
    "signin.js"
    "source-changes.js"
    "source-facts.js"
    "source-plan.js"
    "source-rules.js"
    "sources.js"
    "state.js"
    "style.css"
    "table.js"
    "theme.js"
    "tls.js"
    "tokens.js"
    "url.js"
    "verdict.js"
    "widgets.js"
};

/// What the page may do (W3C Content Security Policy 3, Trusted Types): run its own scripts and reach its own server. A name
/// that a client has chosen cannot become markup, because no script can turn text into markup.
pub(crate) const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
    img-src 'self' data:; connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'; \
    require-trusted-types-for 'script'; trusted-types 'none'";

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    use super::*;

    #[test]
    fn every_file_of_the_folder_is_served() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/panel/ui");
        let there = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let served = FILES.iter().map(|file| file.name.to_owned());
        assert_eq!(served.collect::<BTreeSet<_>>(), there.collect::<BTreeSet<_>>());
        assert!(FILES.iter().all(|file| file.content_type() != "application/octet-stream"));
    }

    #[test]
    fn page_is_the_file_without_a_name() {
        assert_eq!(PanelFile::named("").map(|file| file.name), Some("index.html"));
        for name in ["x", "../files.rs", "index.html/", "INDEX.HTML"] {
            assert_eq!(PanelFile::named(name), None, "{name}");
        }
    }

    #[test]
    fn no_file_needs_another_server_or_a_weaker_policy() {
        for PanelFile { name, content } in FILES {
            let text = std::str::from_utf8(content).unwrap();
            // The namespace of SVG is a name, not an address.
            let text = text.replace("http://www.w3.org/2000/svg", "");
            for word in
                ["http://", "https://", "innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("]
            {
                assert!(!text.contains(word), "{name} has {word}");
            }
            assert!(!name.ends_with(".html") || !text.contains(" style="), "{name} has a style attribute");
        }
    }
}
