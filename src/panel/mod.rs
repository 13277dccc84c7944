//! What the control panel needs of the server: its files, the sessions of people, and the checks of requests that a browser
//! sends with a cookie.
//!
//! The panel runs in the browser and uses the admin API like any other client. A person signs in with a token. The browser
//! then holds a cookie that no script can read, so a request by cookie could come from any page that the browser shows. The
//! checks in [`site`] tell the panel's own requests from those.

pub(crate) mod cookie;
pub(crate) mod files;
pub(crate) mod sessions;
pub(crate) mod site;
