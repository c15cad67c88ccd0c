package spiffe

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unicode/utf8"
)

// maxOffers bounds the SVIDs of a message.
const maxOffers = 20

// offer is one X509SVID of a message. Its bytes are the message's.
type offer struct {
	id     string // spiffe_id
	chain  []byte // x509_svid: DER, leaf first
	key    []byte // x509_svid_key: PKCS #8
	bundle []byte // DER
	hint   string
}

// The wire types of protocol buffers.
const (
	wireVarint  = 0
	wireFixed64 = 1
	wireBytes   = 2
	wireFixed32 = 5
)

// parseResponse reads an X509SVIDResponse. Fields that are not known are skipped, as are the revocation lists and the
// bundles of other trust domains.
func parseResponse(message []byte) ([]offer, error) {
	var offers []offer
	err := eachField(message, func(number uint64, value []byte) error {
		if number != 1 {
			return nil
		}
		if len(offers) == maxOffers {
			return fmt.Errorf("more than %d SVIDs", maxOffers)
		}
		o, err := parseOffer(value)
		if err != nil {
			return fmt.Errorf("SVID %d: %w", len(offers)+1, err)
		}
		offers = append(offers, o)
		return nil
	}, 1, 2, 3)
	if err != nil {
		return nil, err
	}
	return offers, nil
}

// parseOffer reads an X509SVID.
func parseOffer(message []byte) (o offer, err error) {
	seen := make(map[uint64]bool)
	err = eachField(message, func(number uint64, value []byte) error {
		if seen[number] && number <= 5 {
			return fmt.Errorf("field %d appears twice", number)
		}
		seen[number] = true
		switch number {
		case 1:
			o.id = string(value)
		case 2:
			o.chain = value
		case 3:
			o.key = value
		case 4:
			o.bundle = value
		case 5:
			o.hint = string(value)
		}
		return nil
	}, 1, 2, 3, 4, 5)
	if err != nil {
		return offer{}, err
	}
	if !utf8.ValidString(o.id) || !utf8.ValidString(o.hint) {
		return offer{}, errors.New("a string is not UTF-8")
	}
	for _, f := range []struct {
		name  string
		empty bool
	}{
		{"spiffe_id", o.id == ""}, {"x509_svid", len(o.chain) == 0},
		{"x509_svid_key", len(o.key) == 0}, {"bundle", len(o.bundle) == 0},
	} {
		if f.empty {
			return offer{}, fmt.Errorf("has no %s", f.name)
		}
	}
	return o, nil
}

// eachField calls f with each field of a message whose value has a length, and skips the others. The numbers in
// lengths are of fields that must have one.
func eachField(message []byte, f func(number uint64, value []byte) error, lengths ...uint64) error {
	for len(message) > 0 {
		tag, n := binary.Uvarint(message)
		number := tag >> 3
		if n <= 0 || number == 0 || number > 1<<29-1 {
			return errors.New("a field has no valid number")
		}
		message = message[n:]
		size := uint64(0)
		switch wire := tag & 7; wire {
		case wireBytes:
			if size, n = binary.Uvarint(message); n <= 0 {
				return fmt.Errorf("field %d has no valid length", number)
			}
			message = message[n:]
			if size > uint64(len(message)) {
				return fmt.Errorf("field %d is cut off", number)
			}
			if err := f(number, message[:size]); err != nil {
				return err
			}
		default:
			for _, known := range lengths {
				if number == known {
					return fmt.Errorf("field %d has the wire type %d, want %d", number, wire, wireBytes)
				}
			}
			switch wire {
			case wireVarint:
				if _, n = binary.Uvarint(message); n <= 0 {
					return fmt.Errorf("field %d has no valid number for a value", number)
				}
				size = uint64(n)
			case wireFixed64:
				size = 8
			case wireFixed32:
				size = 4
			default: // groups, which version 3 of the language does not have
				return fmt.Errorf("field %d has the wire type %d", number, wire)
			}
			if size > uint64(len(message)) {
				return fmt.Errorf("field %d is cut off", number)
			}
		}
		message = message[size:]
	}
	return nil
}
