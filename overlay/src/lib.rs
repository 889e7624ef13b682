//! Who is a member and how bytes reach one.
