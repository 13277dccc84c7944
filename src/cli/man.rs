//! `portcullis man`: one man page for the program and all its commands.

use std::io::{self, Write as _};

use clap::Command;
use clap_mangen::Man;

use crate::cli::{Failure, print_raw};

pub(crate) fn man(command: &Command) -> Result<(), Failure> {
    let mut page = Vec::new();
    render(command, &mut page).map_err(|error| Failure::Failed(error.to_string()))?;
    print_raw(&String::from_utf8_lossy(&page))
}

/// clap_mangen refers to a separate page for each command; here each command is a section of the same page.
fn render(command: &Command, page: &mut Vec<u8>) -> io::Result<()> {
    let man = Man::new(command.clone());
    man.render_title(page)?;
    man.render_name_section(page)?;
    man.render_synopsis_section(page)?;
    man.render_description_section(page)?;
    writeln!(page, ".SH COMMANDS")?;
    render_commands(command, "portcullis", page)?;
    man.render_extra_section(page)?;
    page.write_all(FILES.as_bytes())?;
    man.render_version_section(page)
}

fn render_commands(command: &Command, path: &str, page: &mut Vec<u8>) -> io::Result<()> {
    for command in command.get_subcommands().filter(|command| command.get_name() != "help") {
        let path = format!("{path} {}", command.get_name());
        if command.has_subcommands() {
            render_commands(command, &path, page)?;
            continue;
        }
        let help = command.clone().bin_name(&path).term_width(76).render_long_help().to_string();
        writeln!(page, ".SS {}\n.nf", escaped(&path))?;
        for line in help.lines() {
            writeln!(page, "{}", escaped(line))?;
        }
        writeln!(page, ".fi")?;
    }
    Ok(())
}

/// Escapes a line for roff, which treats a leading dot or quote as a request and may break a line at a hyphen.
fn escaped(line: &str) -> String {
    let line = line.replace('\\', "\\e").replace('-', "\\-");
    if line.starts_with(['.', '\'']) { format!("\\&{line}") } else { line }
}

const FILES: &str = r"
.SH FILES
.TP
/etc/portcullis/portcullis.toml
Configuration file, unless \-c or $PORTCULLIS_CONFIG sets another path.
.TP
/run/portcullis/admin.sock
Admin socket, if [admin] listen in the configuration sets this path. Only the user of the program and root can use it.
.SH ENVIRONMENT
.TP
PORTCULLIS_CONFIG
Configuration file, unless \-c sets another one.
.TP
PORTCULLIS_TOKEN
Token for \-\-url, unless \-\-token\-file names a file with one.
.SH SIGNALS
.TP
SIGHUP
Reload the configuration and reopen the audit file.
.TP
SIGTERM, SIGINT
Stop accepting connections, wait up to shutdown.drain for open sessions, then close them. A second signal closes them at once.
";
