//! What owners give to others: tokens, the offer of a host, and the accounts of its use.

use super::{Method, Operation, ROOT, WITH_PAGE, items, json};
use crate::{
    AddUser, CreateToken, DrainItem, OfferChange, OfferEnded, OfferOff, OfferView, PassToken,
    RevokeToken, TokenRemoved, TokenRevoked, TokenText, TokenView, UsageRequest, UsageView,
    UserView,
};

/// Rights that owners give.
pub(super) const TOKENS: &[Operation] = &[
    json::<Vec<TokenView>>(
        Method::Get,
        "/tokens",
        ROOT,
        "Lists the tokens that this member was given and gave.",
    ),
    json::<TokenView>(
        Method::Post,
        "/tokens",
        ROOT,
        "Signs a token for rights on a VM of this member, or on this host.",
    )
    .body::<CreateToken>(),
    json::<TokenView>(
        Method::Post,
        "/tokens/attenuate",
        ROOT,
        "Passes a token on to another member, with the same or fewer rights.",
    )
    .body::<PassToken>(),
    json::<TokenView>(Method::Post, "/tokens/show", ROOT, "Reads a token.").body::<TokenText>(),
    json::<TokenView>(
        Method::Post,
        "/tokens/add",
        ROOT,
        "Keeps a token, which this member then shows by itself.",
    )
    .body::<TokenText>(),
    json::<TokenRevoked>(
        Method::Post,
        "/tokens/revoke",
        ROOT,
        "Takes a token back, and with it what was passed on from it.",
    )
    .body::<RevokeToken>(),
    json::<TokenRemoved>(Method::Delete, "/tokens/{id}", ROOT, "Forgets a token."),
    json::<Vec<UserView>>(Method::Get, "/users", ROOT, "Lists the users known here."),
    json::<UserView>(
        Method::Post,
        "/users",
        ROOT,
        "Gives a user's key a name here.",
    )
    .body::<AddUser>(),
];

/// Who used how much of whose host.
pub(super) const USAGE: &[Operation] = &[json::<UsageView>(
    Method::Post,
    "/usage",
    ROOT,
    "Lists what members used of this host, and this member of theirs.",
)
.body::<UsageRequest>()];

/// What this host offers to other members' VMs.
pub(super) const OFFER: &[Operation] = &[
    json::<OfferView>(
        Method::Get,
        "/offer",
        WITH_PAGE,
        "Shows what is offered to other members' VMs, and what they use.",
    ),
    json::<OfferView>(
        Method::Post,
        "/offer",
        WITH_PAGE,
        "Changes the offer, at once and for later starts.",
    )
    .body::<OfferChange>(),
    items::<DrainItem, OfferEnded>(
        Method::Post,
        "/offer/off",
        WITH_PAGE,
        "Ends the offer: moves other members' VMs away, and stops those that cannot move.",
    )
    .body::<OfferOff>(),
];
