"""What one call asks for, checked: shapes, layouts, options, the request that travels down."""
