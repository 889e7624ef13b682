//! What the store promises, through crashes at every step of a commit.

use super::*;
