// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"github.com/hashicorp/vault/sdk/framework"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
)

// errNoEvents says that the server has no event bus.
var errNoEvents = framework.ErrNoEvents

// unimplemented tells whether the server is one without events.
func unimplemented(err error) bool { return status.Code(err) == codes.Unimplemented }

func eventMetadata(pairs map[string]string) *structpb.Struct {
	fields := map[string]*structpb.Value{}
	for name, value := range pairs {
		fields[name] = structpb.NewStringValue(value)
	}
	return &structpb.Struct{Fields: fields}
}
