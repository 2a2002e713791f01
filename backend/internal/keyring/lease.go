// SPDX-License-Identifier: MPL-2.0

package keyring

import "time"

// LeaseLimit is the latest time to which the lease of a version can be
// renewed: the end of its overlap once it is superseded, and never past the
// key's own maximum. It is zero where nothing limits it.
func (k *Key) LeaseLimit(version int) time.Time {
	var limit time.Time
	if k.Lease != nil {
		limit = k.Lease.MaxExpireTime
	}
	if v, ok := k.Version(version); ok && v.State == StateRetiring {
		if limit.IsZero() || v.AcceptedUntil.Before(limit) {
			limit = v.AcceptedUntil
		}
	}
	return limit
}

// Renew moves the end of the lease of a version to expire, cut to what
// LeaseLimit allows. It is refused within a second of that, which Vault cannot
// tell from no lease at all.
func (k *Key) Renew(c Cause, version int, expire time.Time) (*Key, error) {
	if !k.Leased() {
		return nil, refuse(ErrWrongState, "%s is not leased and has nothing to renew", k.Label())
	}
	n, c := k.begin(c)
	i := n.index(version)
	if i < 0 {
		return nil, refuse(ErrNoSuchVersion, "%s has no version %d", k.Label(), version)
	}
	v := &n.Versions[i]
	if !v.AcceptedAt(c.Now) {
		return nil, refuse(ErrFinal, "version %d of %s has ended and its lease cannot be renewed", version, k.Label())
	}
	v.ExpireTime = earlier(expire, k.LeaseLimit(version))
	if v.ExpireTime.Sub(c.Now) < time.Second {
		return nil, refuse(ErrFinal, "the lease of version %d of %s has reached its end and cannot be renewed", version, k.Label())
	}
	return n, nil
}
