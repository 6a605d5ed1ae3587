//! A request as a fuzzer makes it: its target, and the names of the host on the lines after it.

use axum::body::Body;
use axum::http::{Request, Uri, header};

use super::params::Refusal;
use super::{api, details, events, host};

pub(crate) fn fuzz(text: &str) {
    let mut lines = text.split('\n');
    let Ok(uri) = lines.next().unwrap_or_default().parse::<Uri>() else { return };
    let refusals: [Option<Refusal>; 4] = [
        api::selection(&uri).err(),
        api::asked(&uri).err(),
        events::Wanted::of(&uri).err(),
        details::asked(&uri).err(),
    ];
    for refusal in refusals.into_iter().flatten() {
        assert!(!refusal.error.is_empty(), "a refusal that says nothing of {uri}");
    }
    let mut request = Request::builder().uri(uri);
    for name in lines {
        request = request.header(header::HOST, name);
    }
    let Ok(request) = request.body(Body::empty()) else { return };
    if let Err(refusal) = host::check(&request, &["a.example".to_owned()]) {
        assert!(!refusal.to_string().is_empty() && refusal.status().is_client_error());
    }
}
