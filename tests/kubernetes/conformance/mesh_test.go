// The Gateway API's own conformance suite, unmodified; tests/kubernetes/run says what it is run with.
package conformance

import (
	"testing"

	"sigs.k8s.io/gateway-api/conformance"
)

func TestMesh(t *testing.T) { conformance.RunConformance(t) }
