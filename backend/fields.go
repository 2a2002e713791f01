// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"maps"

	"github.com/hashicorp/vault/sdk/framework"
)

// Names of fields that several paths have.
const (
	fieldName            = "name"
	fieldRole            = "role"
	fieldKeyID           = "key_id"
	fieldVersion         = "version"
	fieldReason          = "reason"
	fieldForce           = "force"
	fieldAfter           = "after"
	fieldLimit           = "limit"
	fieldAPIKey          = "api_key"
	fieldState           = "state"
	fieldScopes          = "scopes"
	fieldBoundCIDRs      = "bound_cidrs"
	fieldMetadata        = "custom_metadata"
	fieldEnabled         = "enabled"
	fieldImportKey       = "import_key"
	fieldImportSHA256    = "import_sha256"
	fieldOverlapPeriod   = "overlap_period"
	fieldOverlapScopes   = "overlap_scopes"
	fieldActivationDelay = "activation_delay"
	fieldOverlapEnds     = "overlap_ends"
	fieldAcceptedUntil   = "accepted_until"
	fieldExpireTime      = "expire_time"
	fieldBatchInput      = "batch_input"
	fieldBatchResults    = "batch_results"
	fieldLastRotation    = "last_vault_rotation"
	fieldNextRotation    = "next_vault_rotation"
	fieldRotationPeriod  = "rotation_period"
)

type fields = map[string]*framework.FieldSchema

func textField(description string) *framework.FieldSchema {
	return &framework.FieldSchema{Type: framework.TypeString, Description: description}
}

func boolField(description string) *framework.FieldSchema {
	return &framework.FieldSchema{Type: framework.TypeBool, Description: description}
}

func intField(description string) *framework.FieldSchema {
	return &framework.FieldSchema{Type: framework.TypeInt, Description: description}
}

// int64Field is for numbers that outgrow an int of 32 bits.
func int64Field(description string) *framework.FieldSchema {
	return &framework.FieldSchema{Type: framework.TypeInt64, Description: description}
}

func durationField(description string) *framework.FieldSchema {
	return &framework.FieldSchema{Type: framework.TypeDurationSecond, Description: description}
}

func listField(description string) *framework.FieldSchema {
	return &framework.FieldSchema{Type: framework.TypeCommaStringSlice, Description: description}
}

func pairsField(description string) *framework.FieldSchema {
	return &framework.FieldSchema{Type: framework.TypeKVPairs, Description: description}
}

func timeField(description string) *framework.FieldSchema {
	return &framework.FieldSchema{Type: framework.TypeTime, Description: description}
}

func itemsField(description string) *framework.FieldSchema {
	return &framework.FieldSchema{Type: framework.TypeSlice, Description: description}
}

// byDefault sets what a field is where it is not given.
func byDefault(f *framework.FieldSchema, value any) *framework.FieldSchema {
	f.Default = value
	return f
}

// secret marks a field that user interfaces mask.
func secret(f *framework.FieldSchema) *framework.FieldSchema {
	f.DisplayAttrs = &framework.DisplayAttributes{Sensitive: true}
	return f
}

// inQuery marks a field of a LIST or READ request, so that OpenAPI tells of it.
func inQuery(f *framework.FieldSchema) *framework.FieldSchema {
	f.Query = true
	return f
}

// always marks a field of an answer that is always there.
func always(f *framework.FieldSchema) *framework.FieldSchema {
	f.Required = true
	return f
}

// join puts sets of fields together; a later one wins.
func join(sets ...fields) fields {
	all := fields{}
	for _, set := range sets {
		maps.Copy(all, set)
	}
	return all
}

func nameFields() fields {
	return fields{fieldName: textField("Name of the key: 1 to 128 of A-Z a-z 0-9 _ . - beginning with a letter or digit.")}
}

func roleFields() fields {
	return fields{fieldRole: textField("Name of the role: 1 to 128 of A-Z a-z 0-9 _ . - beginning with a letter or digit.")}
}

func versionFields(description string) fields {
	return fields{fieldVersion: intField(description)}
}

func reasonFields() fields {
	return fields{fieldReason: textField("Why, in a line of at most 256 bytes. It stands in the key's history, so it must not hold a secret.")}
}

func pageFields() fields {
	return fields{
		fieldAfter: inQuery(textField("Begin after this name. It need not exist.")),
		fieldLimit: inQuery(intField("Answer at most so many; 0 is no limit. It bounds the answer, not the work of storage.")),
	}
}

// newKeyFields are in every answer that makes a version.
func newKeyFields() fields {
	return fields{
		fieldAPIKey:      secret(textField("The new API key. It is absent where it was imported, or is no longer stored.")),
		fieldKeyID:       always(textField("Id of the key. It is public and never changes.")),
		fieldVersion:     always(intField("Number of the version.")),
		fieldState:       textField("State of the version: active, or pending until its activation delay is over. It is absent where a repeated request names a version that has ended and is forgotten."),
		fieldOverlapEnds: timeField("Until when clients may use the version that was superseded."),
	}
}
