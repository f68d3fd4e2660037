//! kube2irsa: gives every pod the IAM role of its own ServiceAccount, through the metadata service.

pub mod intercept;
