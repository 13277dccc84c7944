//! Parts of edits of lists of tables: `[[…]]` tables, and lists of inline tables.

use toml_edit::{Array, ArrayOfTables, DocumentMut, RawString};

/// Returns the text with a table at its end, after a blank line.
pub(crate) fn appended(mut text: String, table: &str) -> String {
    if !text.is_empty() {
        text.push_str(if text.ends_with('\n') { "\n" } else { "\n\n" });
    }
    text + table
}

/// Removes a key of the root table and keeps the comments above it.
pub(crate) fn remove_key(document: &mut DocumentMut, key: &str) {
    let removed = document.remove_entry(key);
    let comments = removed.as_ref().and_then(|(key, _)| key.leaf_decor().prefix()).and_then(RawString::as_str);
    let comments = comments.unwrap_or_default().to_owned();
    if let Some((mut next, _)) = document.iter_mut().next() {
        let decor = next.leaf_decor_mut();
        let prefix = comments + decor.prefix().and_then(RawString::as_str).unwrap_or_default();
        decor.set_prefix(prefix);
    } else {
        let trailing = comments + document.trailing().as_str().unwrap_or_default();
        document.set_trailing(trailing);
    }
}

/// Removes a table. Comments above it that belong to the file move to the next table, and are returned if there is none.
pub(crate) fn remove_table(tables: &mut ArrayOfTables, index: usize) -> Option<String> {
    let above =
        tables.get(index).and_then(|table| table.decor().prefix()).and_then(RawString::as_str).unwrap_or_default();
    // Up to the last empty line. What follows is the comment of the table.
    let kept = above.rfind("\n\n").and_then(|line| above.get(..line)).unwrap_or_default();
    let kept = if kept.trim().is_empty() { String::new() } else { format!("{kept}\n") };
    tables.remove(index);
    let Some(next) = tables.get_mut(index) else { return Some(kept) };
    if !kept.is_empty() || index == 0 {
        let prefix = next.decor().prefix().and_then(RawString::as_str).unwrap_or_default();
        // Without text above, the file does not start with an empty line.
        let prefix = if kept.is_empty() { prefix.trim_start_matches('\n').to_owned() } else { kept + prefix };
        next.decor_mut().set_prefix(prefix);
    }
    None
}

/// Removes an inline table and the comment on its line. The parser attaches a comment at the end of a line to what follows.
pub(crate) fn remove_element(list: &mut Array, index: usize) {
    let text = |raw: Option<&RawString>| raw.and_then(RawString::as_str).unwrap_or_default().to_owned();
    let line_end = |text: &str| text.find('\n').filter(|end| text.get(..*end).is_some_and(|line| line.contains('#')));
    let before = text(list.get(index).and_then(|element| element.decor().prefix()));
    let kept = line_end(&before).and_then(|end| before.get(..end)).unwrap_or_default();
    list.remove(index);
    let after = match list.get(index) {
        Some(next) => text(next.decor().prefix()),
        None => text(Some(list.trailing())),
    };
    let after = format!("{kept}{}", after.get(line_end(&after).unwrap_or(0)..).unwrap_or_default());
    match list.get_mut(index) {
        Some(next) => next.decor_mut().set_prefix(after),
        None => list.set_trailing(after),
    }
}
